"""SRe2L: images optimised until a trained network recognises them and its BatchNorm statistics are met."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.methods import Block, Context, Cost, Method, Needs, Support, register_method
from rd3.methods._pixels import to_uint8
from rd3.methods._recovery import BatchNormLoss, PixelSpace, RecoverySettings, Views, by_image, optimise, start
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    import torch


class SRe2LSettings(RecoverySettings):
    """Of the released ``recover*.sh`` scripts."""

    bn_weight: float = Field(ge=0)
    """Weight of the BatchNorm statistics against the cross-entropy."""
    batch_classes: int = Field(ge=1)
    """Classes in a batch, one image of each (all of them where there are fewer); the statistics are of this batch."""
    jitter: int = Field(ge=0)
    """Largest roll, pixels."""
    two_sided: bool = False
    """Roll both ways."""
    crop_scale_min: float | None = Field(default=None, gt=0, le=1)
    """Smallest area of the random resized crop; None: neither crop nor flip is wanted at this size."""
    flip: bool = False


@register_method("sre2l", version=1)
class SRe2L(Method):
    """Noise optimised until the teacher classifies it and its batch statistics equal the teacher's running ones.

    Image ``k`` of each of ``batch_classes`` classes is one batch, in class order.  From Gaussian noise, every iteration
    takes one random view of the batch (crop, flip, roll: shared by all its images), adds the cross-entropy and
    ``bn_weight`` times the BatchNorm term, takes an Adam step on the pixels and clamps them.  The last iterate is kept.
    No real image is looked at.  Sets nest: the IPC-1 set is the first batch of every class group of a larger one.

    Source: Yin, Xing and Shen, "Squeeze, Recover and Relabel", NeurIPS 2023; VILA-Lab/SRe2L
    ``SRe2L/recover/data_synthesis.py``, ``recover.sh`` and the small-dataset scripts.

    Deviations: the total-variation and L2 terms, which every released script sets to zero, are left out; the resized
    crop is antialiased; pixels are clamped to the teacher's own constants; one random stream per batch instead of none
    fixed; stored without loss unless ``save_format`` is ``jpeg``.
    """

    Settings = SRe2LSettings
    counted = ("iterations",)
    quick = {"iterations": 3}

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        return Support(True)

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        return Needs(teachers=(teacher,), init=settings.init)

    def resolve_size(self, settings: SRe2LSettings, info: DatasetInfo, ipc: int) -> SRe2LSettings:
        return settings.model_copy(update={"batch_classes": min(settings.batch_classes, info.num_classes)})

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        return by_image(recipe.ipc, info.num_classes, recipe.settings["batch_classes"])

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        import torch
        import torch.nn.functional as F

        settings: SRe2LSettings = ctx.settings
        teacher, side = ctx.teachers[0], ctx.info.resolution
        space, stream = PixelSpace.of(teacher), ctx.rng("recover", block.index)
        views = Views(side, settings.crop_scale_min, settings.flip, settings.jitter, settings.two_sided)
        labels = torch.tensor(block.labels, device=ctx.device)
        with ctx.phase("recover"):
            images = start(block, ctx, space, stream)
            with BatchNormLoss(teacher.network, settings.first_multiplier) as statistics:

                def loss_of(images: torch.Tensor, _iteration: int) -> torch.Tensor:
                    seen = views(images, stream)
                    with ctx.autocast():
                        logits = teacher.network(seen)
                    return F.cross_entropy(logits.float(), labels) + settings.bn_weight * statistics.value()

                images = optimise(
                    images,
                    loss_of,
                    space,
                    iterations=settings.iterations,
                    lr=settings.lr,
                    betas=(settings.beta1, settings.beta2),
                    where=f"SRe2L, block {block.index}",
                    progress=ctx.progress,
                )
            return to_uint8(space.to_255(images), settings.save_format)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward_flops: Callable[[str], float]) -> Cost:
        # Weights are frozen: a backward pass to the pixels costs about one forward pass.
        passes = 2 * recipe.settings["iterations"] * recipe.ipc * info.num_classes
        return Cost(flops=passes * forward_flops(recipe.teachers[0]))
