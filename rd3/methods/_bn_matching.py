"""The loop that SRe2L, CDA and DWA share: cross-entropy of a teacher plus a loss on its BatchNorm statistics.

A method of this family is a subclass that overrides the steps in which it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.device import set_recovery_format
from rd3.lazy import F, nn, torch
from rd3.methods import Block, Context, Needs, Support
from rd3.methods._pixels import to_uint8
from rd3.methods._recovery import (
    BatchNormLoss,
    PixelSpace,
    RecoveryMethod,
    RecoverySettings,
    by_image,
    optimise,
    shared_view,
    start,
)
from rd3.recipe import SetRecipe


class MatchingSettings(RecoverySettings):
    """Settings that SRe2L, CDA and DWA share."""

    bn_weight: float = Field(ge=0)
    """Weight of the BatchNorm statistics loss relative to the cross-entropy."""
    batch_classes: int = Field(ge=1)
    """Classes in a batch, with one image each; at most the dataset's.  BatchNorm statistics are of this batch."""
    jitter: int = Field(ge=0)
    """Maximum random roll of the batch along each axis, in pixels; 0 disables it."""
    two_sided: bool = False
    """Roll by -jitter to jitter pixels instead of 0 to jitter."""
    crop_scale_min: float | None = Field(default=None, gt=0, le=1)
    """Minimum area of the random resized crop, as a fraction of the image; None disables cropping."""
    flip: bool = False
    """Flip the batch horizontally with probability 0.5 at each iteration."""


class BatchNormMatching(RecoveryMethod):
    """Base of methods that recover images from one teacher, a batch of different classes at a time, as SRe2L does.

    Images start from Gaussian noise or an init set.  A block is a batch, or several generated one after the other.
    """

    Settings: ClassVar[type[MatchingSettings]] = MatchingSettings
    quick = {"iterations": 3}
    side_by_side: ClassVar[bool] = False
    """Whether several blocks may be optimised as one batch: where all are taken from the same unchanged network."""

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

    def min_area(self, settings: Any, iteration: int) -> float | None:
        """Minimum area of the random crop in one iteration, as a fraction of the image; None: no crop."""
        area: float | None = settings.crop_scale_min
        return area

    def network(self, ctx: Context) -> nn.Module:
        """The bare network against which a block is optimised."""
        network = ctx.teachers[0].network
        set_recovery_format(network, ctx.device)
        return network

    def statistics(self, network: nn.Module, settings: Any, batches: int) -> BatchNormLoss:
        """The unweighted BatchNorm loss of ``batches`` batches side by side."""
        return BatchNormLoss(network, settings.first_multiplier, batches=batches)

    def before(
        self, network: nn.Module, error: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, settings: Any
    ) -> torch.Tensor | None:
        """Hook before the first iteration of a batch; a returned tensor is added to that iteration's image gradient.

        ``images`` are the initial ones, (B, 3, H, W) in normalised space; ``error`` gives their cross-entropy, under
        the view that the first iteration will use.
        """
        return None

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        return self._make([block], ctx)[0]

    def blocks_at_once(self, info: DatasetInfo, device: torch.device) -> int:
        """Enough to keep the device busy.

        An iteration of ten images of 32 or 64 pixels leaves a GPU waiting for its next kernel.  A CPU is as busy with
        one block as with ten, and so is a GPU at 224 pixels.
        """
        return 10 if self.side_by_side and device.type == "cuda" and info.resolution <= 64 else 1

    def make_many(self, blocks: Sequence[Block], ctx: Context) -> list[torch.Tensor]:
        if not self.side_by_side:
            return super().make_many(blocks, ctx)
        by_size: dict[int, list[Block]] = {}
        for block in blocks:
            by_size.setdefault(len(block.members), []).append(block)
        images: dict[int, torch.Tensor] = {}
        for number, alike in enumerate(by_size.values()):
            own = replace(ctx, progress=ctx.part(number, len(by_size)))
            images |= zip((block.index for block in alike), self._make(alike, own), strict=True)
        return [images[block.index] for block in blocks]

    def _make(self, blocks: Sequence[Block], ctx: Context) -> list[torch.Tensor]:
        """Images of blocks of equal size, generated side by side."""
        settings, size = ctx.settings, len(blocks[0].members)
        streams = [ctx.rng("recover", block.index) for block in blocks]
        firsts = range(0, size, settings.batch_classes)
        with ctx.phase("recover"):
            network = self.network(ctx)
            parts = []
            for number, first in enumerate(firsts):
                last = first + settings.batch_classes
                batches = [Block(block.index, block.members[first:last]) for block in blocks]
                own = replace(ctx, progress=ctx.part(number, len(firsts)))
                images = self._recover(batches, network, streams, own)
                parts.append(to_uint8(images, settings.save_format).chunk(len(blocks)))
            return [torch.cat(of_block) for of_block in zip(*parts, strict=True)]

    def _recover(
        self, batches: Sequence[Block], network: nn.Module, streams: Sequence[torch.Generator], ctx: Context
    ) -> torch.Tensor:
        """(G * B, 3, H, W) float in 0-255: G batches of B images, recovered side by side.

        Each has its own stream, views and statistics.  A frozen network in eval mode treats every image, and Adam every
        value, independently: the gradient of the summed loss with respect to a batch is that of its own loss.
        """
        settings: MatchingSettings = ctx.settings
        space = PixelSpace(ctx.teachers[0])
        labels = torch.tensor([label for batch in batches for label in batch.labels], device=ctx.device)
        images = torch.cat([start(batch, ctx, own) for batch, own in zip(batches, streams, strict=True)])

        def see(images: torch.Tensor, iteration: int, streams: Sequence[torch.Generator]) -> torch.Tensor:
            area, flip, jitter = self.min_area(settings, iteration), settings.flip, settings.jitter
            view = partial(shared_view, min_area=area, flip=flip, jitter=jitter, two_sided=settings.two_sided)
            return torch.cat(list(map(view, images.chunk(len(streams)), streams)))

        def first_error(images: torch.Tensor) -> torch.Tensor:
            with ctx.autocast():
                logits = network(see(images, 0, [own.clone_state() for own in streams]))
            return F.cross_entropy(logits.float(), labels)

        gradient = self.before(network, first_error, images, settings)
        with self.statistics(network, settings, len(batches)) as statistics:

            def loss_of(images: torch.Tensor, iteration: int) -> torch.Tensor:
                seen = see(images, iteration, streams)
                with ctx.autocast():
                    logits = network(seen)
                classified = len(batches) * F.cross_entropy(logits.float(), labels)
                loss = classified + settings.bn_weight * statistics.value()
                if iteration == 0 and gradient is not None:
                    # A term of value 0 whose gradient with respect to the images is ``gradient``.
                    loss = loss + (gradient * (images - images.detach())).sum()
                return loss

            where = f"{type(self).__name__}, block {', '.join(str(batch.index) for batch in batches)}"
            images = optimise(images, loss_of, space, settings, where=where, progress=ctx.progress)
        return space.to_255(images)
