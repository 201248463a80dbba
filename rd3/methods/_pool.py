"""Shared steps of G-VBSM and EDC: images are optimised class by class, with a pool of teachers used in turn.

Source: shaoshitong/G_VBSM_Dataset_Condensation
``Branch_*/recover/data_synthesis_with_svd_with_db_with_all_statistic.py``; shaoshitong/EDC ``Branch_*/recover``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.lazy import F, torch
from rd3.methods import Block, Context, Needs
from rd3.methods._matching import MatchingLoss, targets_of_all, targets_of_labels
from rd3.methods._recovery import PixelSpace, RecoveryMethod, RecoverySettings, shared_view
from rd3.recipe import CollectionSettings, SetRecipe


class PoolSettings(RecoverySettings):
    """Settings that G-VBSM and EDC share."""

    pool: tuple[str, ...] = Field(default=(), exclude=True)
    """Roles of the teachers, used in turn, one per iteration; empty uses the grid's teacher alone.  The recipe stores
    them as its teachers."""
    batch_size: int = Field(ge=1)
    """Images optimised together, whose layer statistics are matched; at most the whole set.  Images are ordered by
    class, so a batch may span classes."""
    matching_weight: float = Field(ge=0)
    """Weight of the statistics loss relative to the cross-entropy."""
    ema: float = Field(ge=0, lt=1)
    """Decay of the exponential moving average of a batch's statistics, which starts at zero."""
    drop_rate: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a convolution is left out of the statistics loss in an iteration."""
    crop_scale_min: float | None = Field(default=None, gt=0, le=1)
    """Minimum area of the random resized crop, as a fraction of the image; None crops at full size after padding by an
    eighth of the side."""
    flip: bool = True
    """Flip images horizontally with probability 0.5, in the views and when statistics are collected."""
    patch: int = Field(ge=1)
    """Side of the tiles whose statistics are matched, in pixels of a layer's input."""
    statistics_crop: Literal["pad", "resized", "none"]
    """Random crop of the training images from which statistics are collected: ``pad`` after padding by an eighth of the
    side, ``resized`` as RandomResizedCrop(0.08, 1)."""
    statistics_batch: int = Field(ge=1)
    """Batch size with which statistics are collected."""


class PoolMethod(RecoveryMethod):
    """Base of G-VBSM and EDC."""

    quick = {"iterations": 3, "batch_size": 10, "pool": ("teacher", "another")}

    def needs(self, info: DatasetInfo, settings: PoolSettings, teacher: str) -> Needs:
        crop, batch_size = settings.statistics_crop, settings.statistics_batch
        collection = CollectionSettings(patch=settings.patch, crop=crop, flip=settings.flip, batch_size=batch_size)
        return Needs(teachers=settings.pool or (teacher,), collection=collection, init=settings.init)

    def resolve_size(self, settings: PoolSettings, info: DatasetInfo, ipc: int) -> PoolSettings:
        return settings.model_copy(update={"batch_size": min(settings.batch_size, ipc * info.num_classes)})

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        """Images class after class; those of a class are divided into ``parts`` (a setting of G-VBSM alone).

        Each part holds some images of every class.
        """
        parts, size = recipe.settings.get("parts", 1), recipe.settings["batch_size"]
        numbers = [range(recipe.ipc * part // parts, recipe.ipc * (part + 1) // parts) for part in range(parts)]
        members = [(label, k) for of_part in numbers for label in range(info.num_classes) for k in of_part]
        starts = range(0, len(members), size)
        return [Block(index, tuple(members[first : first + size])) for index, first in enumerate(starts)]


def view(images: torch.Tensor, settings: PoolSettings, stream: torch.Generator, *, jitter: int = 0) -> torch.Tensor:
    """(B, 3, H, W) in normalised space: one crop, one flip and one roll by 0 to ``jitter``, shared by the batch."""
    if settings.crop_scale_min is None:
        images = padded_crop(images, images.shape[-1] // 8, stream)
    return shared_view(images, stream, min_area=settings.crop_scale_min, flip=settings.flip, jitter=jitter)


def padded_crop(images: torch.Tensor, padding: int, stream: torch.Generator) -> torch.Tensor:
    """The same crop of every image (B, 3, H, W) in normalised space, after padding with zeros, the mean colour."""
    top, left = torch.randint(2 * padding + 1, (2,), generator=stream).tolist()
    padded = F.pad(images, (padding, padding, padding, padding))
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


class Pool:
    """The teachers of a block, used one per iteration, each with its own statistics loss; images live in its ``space``.

    The order continues from block to block, as a counter that is never reset: iteration ``t`` of block ``b`` uses
    teacher ``(b * iterations + t) % K``.  ``category_weight`` is the weight of the batch's class statistics in the
    target; the statistics of all images have the rest of 1.
    """

    def __init__(self, block: Block, ctx: Context, *, category_weight: float = 0.0):
        settings: PoolSettings = ctx.settings
        self.teachers, self.space, self.autocast = ctx.teachers, PixelSpace(ctx.teachers[0]), ctx.autocast
        self.first_turn = block.index * settings.iterations
        self.labels, stream = torch.tensor(block.labels, device=ctx.device), ctx.rng("drop", block.index)
        self.losses = []
        for teacher, statistics in zip(ctx.teachers, ctx.statistics, strict=True):
            targets = [(1 - category_weight, targets_of_all(teacher.network, statistics))]
            if category_weight:
                targets.append((category_weight, targets_of_labels(teacher.network, statistics, self.labels)))
            self.losses.append(
                MatchingLoss(
                    teacher.network,
                    targets,
                    patch=statistics.patch,
                    first_multiplier=settings.first_multiplier,
                    ema=settings.ema,
                    drop_rate=settings.drop_rate,
                    stream=stream,
                )
            )

    def turn(self, iteration: int) -> int:
        """Index of the teacher of this iteration."""
        return (self.first_turn + iteration) % len(self.teachers)

    def forward(self, views: torch.Tensor, iteration: int) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Logits (B, C) of this iteration's teacher and its statistics loss; ``views`` are in normalised space."""
        with self.losses[self.turn(iteration)] as loss:
            logits = self.logits(views, iteration)
            return logits, loss.value()

    def logits(self, views: torch.Tensor, iteration: int) -> torch.Tensor:
        """(B, C) float32 logits of this iteration's teacher, without the statistics loss."""
        with self.autocast():
            return self.teachers[self.turn(iteration)](self.space.to_unit(views)).float()
