"""Random: real images drawn uniformly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rd3.datasets import DatasetInfo
from rd3.methods import Block, Context, Cost, Method, Settings, register_method
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    import torch

_GROUP = 100
"""Classes in a block; how classes are grouped changes no image."""


class RandomSettings(Settings):
    """No settings."""


@register_method("random", version=1)
class Random(Method):
    """Uniformly sampled real images: the baseline that every method must beat at equal IPC.

    The first IPC images of one permutation per class, so that the IPC-1 set is part of the IPC-10 set.
    Images are stored at the dataset's size (shorter side resized with antialias, centre crop), losslessly.

    Deviations: other code stores real images at 224 pixels with the shorter side at 224.  ``imagenet1k``,
    ``imagenette`` and ``imagewoof`` have images as in tests, with the shorter side at 256 before the crop to 224, which
    cuts off an eighth of that side; their subsets at 224 pixels are taken whole.

    Source: "Rectified Decoupled Dataset Distillation" (RD3), Table 7; the set is fixed by its set seed.
    """

    Settings = RandomSettings

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        return True

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        groups = [range(first, min(first + _GROUP, info.num_classes)) for first in range(0, info.num_classes, _GROUP)]
        pairs = [(k, group) for k in range(recipe.ipc) for group in groups]
        return [Block(index, tuple((label, k) for label in group)) for index, (k, group) in enumerate(pairs)]

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        with ctx.phase("select"):
            return ctx.dataset.images(ctx.split, [self._pick(label, k, ctx) for label, k in block.members])

    def _pick(self, label: int, k: int, ctx: Context) -> int:
        import torch

        indices = ctx.class_indices(label, k + 1)
        order = torch.randperm(len(indices), generator=ctx.rng("select", label))
        return int(indices[order[k]])

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        return Cost()
