"""Views of a synthetic set: augmented batches for the student and the teachers in post-evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rd3.augment import to_unit
from rd3.augmentations import Augmentation, Draws, transforms
from rd3.losses import LossTargets
from rd3.protocol import EvalProtocol
from rd3.seeding import generator


@dataclass
class Batch:
    """The input of one training step."""

    epoch: int
    """Epoch, from 1."""
    images: torch.Tensor
    """(B, 3, H, W) float32 in [0, 1]."""
    targets: LossTargets
    rows: torch.Tensor
    """(B,) int64 indices of the base images in the set."""
    rows_mixed: torch.Tensor
    """(B,) int64 indices of the images mixed in; equal to ``rows`` without CutMix or MixUp."""
    last: bool = False
    """Whether this is the last batch of its epoch."""


class Chunk(NamedTuple):
    """Several batches whose pixels were computed together."""

    pixels: torch.Tensor
    """(sum of B, 3, H, W) images of all batches, concatenated."""
    batches: list[Batch]


class _Drawn(NamedTuple):
    """A batch before its pixels are computed."""

    epoch: int
    rows: torch.Tensor
    """(B,) int64 indices into the set."""
    draws: list[Draws]
    """Random draws of each augmentation."""
    last: bool


def views(
    images: torch.Tensor, labels: torch.Tensor, protocol: EvalProtocol, seed: int, ahead: int = 1
) -> Iterator[Chunk]:
    """All batches of all epochs in order, in chunks of ``ahead``, without teacher logits.

    ``images``: (N, 3, H, W) uint8 or float in [0, 1]; ``labels``: (N,) int64.  Pixels are computed on the device of
    ``images``, one chunk at a time.  Order and augmentation have separate random streams, so batches do not depend on
    ``ahead``.  With ``label_epochs`` the views of the first epochs are reused, drawn from them by a third stream.
    """
    steps = transforms(protocol.augmentation)
    draw = _drawn if protocol.label_epochs is None else _reused
    drawn = draw(len(images), images.shape[-1], protocol, steps, seed)
    while batches := list(itertools.islice(drawn, ahead)):
        yield _chunk(batches, images, labels, steps)


def _drawn(count: int, side: int, protocol: EvalProtocol, steps: Sequence[Augmentation], seed: int) -> Iterator[_Drawn]:
    order, augment = generator(seed, "order"), generator(seed, "augment")
    for epoch in range(1, protocol.epochs + 1):
        batches = _epoch_rows(count, protocol.batch_size, order)
        for number, rows in enumerate(batches, 1):
            draws = [step.draw(len(rows), side, augment) for step in steps]
            yield _Drawn(epoch, rows, draws, number == len(batches))


def _epoch_rows(count: int, batch_size: int, order: torch.Generator) -> list[torch.Tensor]:
    """(B,) int64 indices into the set for each batch of the next epoch; a last batch of a single image is dropped."""
    return [rows for rows in torch.randperm(count, generator=order).split(batch_size) if len(rows) > 1]


_MOST_STATES = 2**14
"""States of the augmentation stream that are kept, of 5 KB each: about 80 MB.  A larger pool keeps one state for
several batches, and repeats the draws from there up to the wanted batch."""


class _PoolBatch(NamedTuple):
    """A batch of the first ``label_epochs`` epochs, whose draws can be repeated."""

    rows: torch.Tensor
    """(B,) int64 indices into the set."""
    state: torch.Tensor
    """State of the augmentation stream before the draws of ``skipped`` full batches and then of this one."""
    skipped: int


def _reused(
    count: int, side: int, protocol: EvalProtocol, steps: Sequence[Augmentation], seed: int
) -> Iterator[_Drawn]:
    """Batches of the first ``label_epochs`` epochs, drawn with replacement as LPLD's pool of labels.

    Source: he-y/soft-label-pruning-for-dataset-distillation ``train_FKD_label_pruning_batch.py``.  Deviation: there, a
    draw of an epoch's last batch takes the one before it; here, batches that are not full are left out of the pool.
    """
    augment, pick = generator(seed, "augment"), generator(seed, "label reuse")
    pool = _pool(count, side, protocol, steps, seed)
    full = [batch for batches in pool for batch in batches if len(batch.rows) == protocol.batch_size]
    for epoch in range(1, protocol.epochs + 1):
        if protocol.label_reuse == "epochs":
            batches = pool[int(torch.randint(len(pool), (), generator=pick))]
        else:
            picked = torch.randint(len(full), (count // protocol.batch_size,), generator=pick)
            batches = [full[number] for number in picked.tolist()]
        for number, batch in enumerate(batches, 1):
            follows = number > 1 and protocol.label_reuse == "epochs"  # the stream is where this batch begins
            if not follows:
                augment.set_state(batch.state)
            for size in (*[protocol.batch_size] * (0 if follows else batch.skipped), len(batch.rows)):
                draws = [step.draw(size, side, augment) for step in steps]
            yield _Drawn(epoch, batch.rows, draws, number == len(batches))


def _pool(
    count: int, side: int, protocol: EvalProtocol, steps: Sequence[Augmentation], seed: int
) -> list[list[_PoolBatch]]:
    """The batches of each of the first ``label_epochs`` epochs; not their draws, which may be as large as images."""
    order, augment = generator(seed, "order"), generator(seed, "augment")
    epochs = protocol.label_epochs or 0
    every = -(-epochs * -(-count // protocol.batch_size) // _MOST_STATES)
    pool: list[list[_PoolBatch]] = [[] for _epoch in range(epochs)]
    for batches in pool:
        for index, rows in enumerate(_epoch_rows(count, protocol.batch_size, order)):
            state = batches[-1].state if index % every else augment.get_state()
            batches.append(_PoolBatch(rows, state, index % every))
            for step in steps:
                step.draw(len(rows), side, augment)
    return pool


def _chunk(drawn: list[_Drawn], images: torch.Tensor, labels: torch.Tensor, steps: Sequence[Augmentation]) -> Chunk:
    """Pixels and hard labels of some batches."""
    sizes = [len(each.rows) for each in drawn]
    rows = torch.cat([each.rows for each in drawn]).to(images.device)
    pixels, own = to_unit(images[rows]), labels[rows]
    partner, lams = torch.arange(len(rows), device=images.device), [1.0] * len(drawn)
    for place, step in enumerate(steps):
        draws = [
            torch.cat(parts).to(images.device) for parts in zip(*(each.draws[place] for each in drawn), strict=True)
        ]
        if step.mixes:
            # A step that mixes, of which there is at most one, draws partners (B,) and lambdas (B,), equal in a batch.
            lams = [float(each.draws[place][1][0]) for each in drawn]
            # From positions within a batch to positions within the chunk.
            starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
            partner = draws[0] + starts.repeat_interleave(torch.tensor(sizes)).to(images.device)
            draws[0] = partner
        pixels = step.apply(pixels, *draws)
    of_images = (each.split(sizes) for each in (pixels, own, own[partner], rows, rows[partner]))
    batches = [
        Batch(each.epoch, view, LossTargets(None, base, mixed, lam, each.epoch), own_rows, rows_mixed, each.last)
        for each, lam, view, base, mixed, own_rows, rows_mixed in zip(drawn, lams, *of_images, strict=True)
    ]
    return Chunk(pixels, batches)
