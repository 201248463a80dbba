"""RDED: the most realistic crops of real images, as a mosaic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue, Unsupported
from rd3.lazy import F, torch
from rd3.methods import Block, Context, Cost, Method, Needs, Settings, Support, register_method
from rd3.methods._patch_scoring import key_patches
from rd3.methods._pixels import SaveFormat, to_uint8
from rd3.recipe import SetRecipe


class RDEDSettings(Settings):
    """Settings as in ``synthesize/main.py`` of the released code."""

    factor: int | None = Field(default=None, ge=1)
    """Tiles per side of a mosaic; None uses the dataset's factor (1 at 32 and 64 pixels, 2 at 224)."""
    mipc: int = Field(ge=1)
    """Training images scored per class; raised to IPC * factor^2 if smaller, limited to the images of the class."""
    num_crop: int = Field(ge=1)
    """Random crops per image, of which the best-scoring one is kept."""
    scale_min: float = Field(default=0.08, gt=0, le=1)
    """Minimum area of a crop, as a fraction of the image; the maximum is 1."""
    save_format: SaveFormat = "png"
    """``png`` stores pixels losslessly, ``jpeg`` after compression at quality 75, as the authors did."""


@register_method("rded", version=1)
class RDED(Method):
    """Mosaics of the crops of real images with the lowest cross-entropy of a teacher for their class.

    For every class, ``num_crop`` random square crops of each of ``mipc`` images are resized to a tile.  For scoring, a
    crop is padded to the input size with the mean colour (factor > 1 only); its score is the teacher's
    cross-entropy for the true class.  The best crop of each image is kept.  Of these, the best IPC become tile 0 (top
    left) of images 0 to IPC - 1, the next IPC tile 1, and so on, row by row.  No soft labels are stored.  At factor 1 a
    smaller set is the beginning of a larger one; at factor > 1 it is not, as its images hold other patches.

    Source: Sun et al., "On the Diversity and Realism of Distilled Dataset", CVPR 2024; LINs-lab/RDED
    ``synthesize/main.py``, ``synthesize/utils.py``, ``synthesize/models.py``, ``scripts/``.

    Deviations: scores use the teacher's own normalisation constants, not ImageNet's for every dataset; log-softmax
    instead of the logarithm of a softmax (finite for hopeless crops); a class with fewer than ``mipc`` images gives all
    of them, and ``mipc`` is raised where IPC * factor^2 needs more (the released code fails in both cases); stored
    losslessly unless ``save_format`` is ``jpeg``.
    """

    Settings = RDEDSettings
    counted = ("mipc", "num_crop")
    quick = {"mipc": 6, "num_crop": 2}

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        needed = ipc * info.factor**2
        if needed > info.train_per_class:
            return Support(
                False, f"{needed} patches a class are needed, {info.name} has {info.train_per_class} training images"
            )
        return Support(True)

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        return Needs(teachers=(teacher,))

    def resolve_size(self, settings: RDEDSettings, info: DatasetInfo, ipc: int) -> RDEDSettings:
        factor = settings.factor or info.factor
        if factor > info.resolution:
            raise BadValue(f"Method rded, setting factor: {factor} tiles do not fit into {info.resolution} pixels.")
        return settings.model_copy(update={"factor": factor, "mipc": max(settings.mipc, ipc * factor**2)})

    def nests(self, settings: RDEDSettings, info: DatasetInfo) -> bool:
        # A block is a class, its images best patch first; in a mosaic of several a larger set takes others.
        return settings.factor == 1

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        factor: int = ctx.settings.factor
        with ctx.phase("select"):
            patches = self._select(block.labels[0], len(block.members) * factor**2, ctx)
        with ctx.phase("stitch"):
            return to_uint8(mosaic(patches, factor, ctx.info.resolution), ctx.settings.save_format)

    def _select(self, label: int, wanted: int, ctx: Context) -> torch.Tensor:
        """(wanted, 3, s, s) float in 0-255: key patches of a class, the most realistic first."""
        indices, stream = ctx.class_indices(label), ctx.rng("select", label)
        if len(indices) < wanted:
            raise Unsupported(
                f"Class {ctx.info.class_ids[label]} has {len(indices)} images in split {ctx.split}, rded needs "
                f"{wanted} patches."
            )
        chosen = [int(indices[n]) for n in torch.randperm(len(indices), generator=stream)[: ctx.settings.mipc]]
        return key_patches(label, chosen, wanted, stream, ctx, size=ctx.info.resolution // ctx.settings.factor)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        settings = RDEDSettings.model_validate(recipe.settings)
        scored_images = min(settings.mipc, info.train_per_class) * info.num_classes
        return scored_images * settings.num_crop * forward(recipe.teachers[0])


def mosaic(patches: torch.Tensor, factor: int, side: int) -> torch.Tensor:
    """(n * factor^2, 3, s, s) -> (n, 3, side, side): patch ``k * n + i`` becomes tile ``k``, row-major, of image ``i``.

    Where ``side`` is not divisible the first tiles of a row and column are one pixel larger (nearest interpolation).
    """
    n = len(patches) // factor**2
    sides = [side // factor + (1 if tile < side % factor else 0) for tile in range(factor)]
    starts = [sum(sides[:tile]) for tile in range(factor)]
    images = patches.new_zeros((n, 3, side, side))
    for tile in range(factor**2):
        row, column = divmod(tile, factor)
        part = F.interpolate(patches[tile * n : (tile + 1) * n], (sides[row], sides[column]), mode="nearest")
        top, left = starts[row], starts[column]
        images[:, :, top : top + sides[row], left : left + sides[column]] = part
    return images
