"""What SRe2L, CDA and DWA are: images that a teacher classifies and whose batch meets its BatchNorm statistics.

A method of this family is one class below and the steps that it does in its own way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.methods import Block, Context, Cost, Method, Needs, Support
from rd3.methods._pixels import to_uint8
from rd3.methods._recovery import (
    BatchNormLoss,
    PixelSpace,
    RecoverySettings,
    Views,
    by_image,
    optimise,
    recovery_cost,
    start,
)
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    import torch


class MatchingSettings(RecoverySettings):
    """What every method of the family can set."""

    bn_weight: float = Field(ge=0)
    """Weight of the BatchNorm statistics against the cross-entropy."""
    batch_classes: int = Field(ge=1)
    """Classes in a batch, one image of each (all of them where there are fewer); the statistics are of this batch."""
    jitter: int = Field(ge=0)
    """Largest roll, pixels."""
    two_sided: bool = False
    """Roll both ways."""
    crop_scale_min: float | None = Field(default=None, gt=0, le=1)
    """Smallest area of the random resized crop; None: no crop is wanted at this size."""
    flip: bool = False


class BatchNormMatching(Method):
    """Base of methods that recover images from one teacher, a batch of different classes at a time.

    Image ``k`` of each of ``batch_classes`` classes is one batch, in class order.  From Gaussian noise or the images of
    an init set, every iteration takes one view of the batch (crop, flip, roll: shared by all its images), adds the
    cross-entropy and ``bn_weight`` times the BatchNorm term, takes an Adam step on the pixels and clamps them.  The
    last iterate is kept.  A block is a batch, or several that are made one after the other.
    """

    Settings = MatchingSettings
    counted = ("iterations",)
    quick = {"iterations": 3}

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        return Support(True)

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        return Needs(teachers=(teacher,), init=settings.init)

    def resolve_size(self, settings: Any, info: DatasetInfo, ipc: int) -> Any:
        return settings.model_copy(update={"batch_classes": min(settings.batch_classes, info.num_classes)})

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        # Blocks go by image number, and a block's random stream is named by its index.
        return True

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        return by_image(recipe.ipc, info.num_classes, recipe.settings["batch_classes"])

    def views(self, settings: Any, side: int, iteration: int) -> Views:
        """What an iteration may see of images of ``side`` pixels."""
        return Views(side, settings.crop_scale_min, settings.flip, settings.jitter, settings.two_sided)

    def network(self, ctx: Context) -> torch.nn.Module:
        """The bare network that a block is recovered from."""
        return ctx.teachers[0].network

    def statistics(self, network: torch.nn.Module, settings: Any) -> BatchNormLoss:
        """The BatchNorm term, before its weight."""
        return BatchNormLoss(network, settings.first_multiplier)

    def before(
        self,
        network: torch.nn.Module,
        see: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        ctx: Context,
    ) -> torch.Tensor | None:
        """Called before the first iteration of a batch; what it gives is added to that iteration's image gradient.

        ``see`` gives of images the view that the first iteration will take; ``images`` (B, 3, H, W) are what the batch
        starts from, ``labels`` (B,) their classes.
        """
        return None

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        import torch

        settings, members = ctx.settings, block.members
        space, stream = PixelSpace.of(ctx.teachers[0]), ctx.rng("recover", block.index)
        firsts = range(0, len(members), settings.batch_classes)
        batches = [Block(block.index, members[first : first + settings.batch_classes]) for first in firsts]
        with ctx.phase("recover"):
            network = self.network(ctx)
            parts = []
            for number, batch in enumerate(batches):
                done = functools.partial(_tell, ctx.progress, number, len(batches))
                parts.append(to_uint8(self._recover(batch, network, space, stream, ctx, done), settings.save_format))
            return torch.cat(parts)

    def _recover(
        self,
        batch: Block,
        network: torch.nn.Module,
        space: PixelSpace,
        stream: torch.Generator,
        ctx: Context,
        progress: Callable[[float], None],
    ) -> torch.Tensor:
        """(B, 3, H, W) float in 0-255: one batch, recovered."""
        import torch
        import torch.nn.functional as F

        settings, side = ctx.settings, ctx.info.resolution
        labels = torch.tensor(batch.labels, device=ctx.device)
        images = start(batch, ctx, space, stream)

        def see_first(images: torch.Tensor) -> torch.Tensor:
            return self.views(settings, side, 0)(images, stream.clone_state())

        gradient = self.before(network, see_first, images, labels, ctx)
        with self.statistics(network, settings) as statistics:

            def loss_of(images: torch.Tensor, iteration: int) -> torch.Tensor:
                seen = self.views(settings, side, iteration)(images, stream)
                with ctx.autocast():
                    logits = network(seen)
                loss = F.cross_entropy(logits.float(), labels) + settings.bn_weight * statistics.value()
                if iteration == 0 and gradient is not None:
                    loss = loss + (gradient * (images - images.detach())).sum()
                return loss

            images = optimise(
                images,
                loss_of,
                space,
                **settings.descent,
                where=f"{type(self).__name__}, block {batch.index}",
                progress=progress,
            )
        return space.to_255(images)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        return recovery_cost(recipe, info, forward)


def _tell(progress: Callable[[float], None], number: int, batches: int, fraction: float) -> None:
    """Of the done fraction of a batch, that of its block."""
    progress((number + fraction) / batches)
