"""Train a network from scratch, epoch by epoch, so that it can be interrupted and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from rd3.augment import horizontal_flip, pad_crop, resized_crop, to_unit
from rd3.data_checks import check_training_images
from rd3.datasets import Dataset, Split
from rd3.device import autocast, repeatable_kernels, resolve_precision, set_memory_format, usable_device
from rd3.duration import duration
from rd3.errors import BadValue, Diverged
from rd3.models import NormalisedNetwork, build_network
from rd3.recipe import CollectionSettings, SourceSplit, TeacherRecipe, TeacherTraining, TrainingDynamicsRecipe
from rd3.seeding import ForkedRNG, generator
from rd3.stopwatch import Stopwatch
from rd3.store import write_curve
from rd3.teacher.artifact import CURVE, Progress, write_teacher
from rd3.teacher.checkpoint import CHECKPOINT, Counters, read_checkpoint, write_checkpoint

HELD_BYTES = 2 << 30
"""Training images up to this many bytes as uint8 are kept on an accelerator instead of being copied batch by batch."""
TRAINING_SHARE = 0.97
"""Share of the progress taken by training; the rest is testing."""
REPORT_EVERY_S = 30.0
"""Time between reports of progress within an epoch, in seconds."""
TrainableRecipe = TeacherRecipe | TrainingDynamicsRecipe
"""Recipes whose network is trained here."""


class Observer:
    """Called at every training step and after every epoch; this base class does nothing."""

    def step(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """One batch: positions in the split (B,) on the CPU, logits (B, C) and labels (B,) on the device."""

    def finish(self, epoch: int) -> None:
        """End of an epoch, counted from 0, before its checkpoint: whatever it adds to disk must be written now."""


def train(
    recipe: TeacherRecipe,
    dataset: Dataset,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
) -> dict[str, Any]:
    """Train the recipe's network, test it, write the folder, and return the figures for the ledger.

    Resumption, errors and deviations are those of :func:`fit`.  The last epoch's weights are kept, never the best.
    """
    device, out = usable_device(device), Path(out)
    network, precision, counters = fit(
        recipe, dataset, out, device=device, observer=Observer(),
        progress=lambda fraction, note: progress(TRAINING_SHARE * fraction, note),
    )  # fmt: skip
    stopwatch = Stopwatch()
    stopwatch.include(counters.wall_s, counters.process_s)
    write_curve(out / CURVE, counters.curve)
    manifest = write_teacher(
        out, recipe, network, dataset, device=device, origin="trained by RD3", precision=precision,
        curve=counters.curve,
        progress=lambda fraction, note: progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * fraction, note),
    )  # fmt: skip
    (out / CHECKPOINT).unlink(missing_ok=True)
    return {
        **manifest.test_figures(),
        "ran_precision": precision,
        "epochs": len(counters.curve),
        "final_loss": counters.curve[-1]["loss"],
        **stopwatch.spent(),
    }


def fit(
    recipe: TrainableRecipe,
    dataset: Dataset,
    out: Path,
    *,
    device: torch.device,
    observer: Observer,
    progress: Progress,
) -> tuple[NormalisedNetwork, Literal["fp32", "bf16"], Counters]:
    """Train the recipe's network and return it with the precision, the curve and the time of all attempts.

    Resumes from a checkpoint of the same recipe and precision in ``out``, which the caller deletes; every random number
    is a function of seed and epoch, so the result equals that of an uninterrupted run.  Raises :class:`Diverged` after
    an epoch with a loss that is not finite.

    Deviations from torchvision's reference training: ``resized`` crops the dataset's own resized and centre-cropped
    images rather than the files; the learning rate changes at every step; a last batch of a single image is left out.
    Crops and flips are drawn for each image; ``pad`` fills with zeros (black).
    """
    stopwatch = Stopwatch()
    training, seed = recipe.training, recipe.seed
    if training is None or seed is None:
        raise BadValue(
            f"Teacher {recipe.key[:12]} cannot be trained: its recipe has no training settings or no seed.",
            "import its weights",
        )
    check_training_images(recipe, dataset)
    precision = resolve_precision(device, recipe.precision or "auto")
    network = build_network(
        recipe.network, dataset.info.num_classes, recipe.resolution, recipe.normalisation, generator(seed, "init")
    ).to(device)
    set_memory_format(network, precision)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=training.lr, momentum=training.momentum, nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )  # fmt: skip
    counters = _resumed(out / CHECKPOINT, recipe.key, precision, network, optimizer, progress)
    stopwatch.include(counters.wall_s, counters.process_s)
    epoch_s = []
    images = Images(dataset, recipe.data.split, device)
    for epoch in range(len(counters.curve), training.epochs):
        started = time.perf_counter()
        note = f"epoch {epoch + 1}/{training.epochs}"
        report = within_epochs(progress, epoch, training.epochs, note)
        with ForkedRNG(device, seed, "dropout", epoch), repeatable_kernels():
            row = _train_epoch(epoch, network, optimizer, images, recipe, training, seed, precision, observer, report)
        observer.finish(epoch)
        counters.curve.append(row)
        epoch_s.append(time.perf_counter() - started)
        so_far = Counters(counters.curve, **stopwatch.spent())
        write_checkpoint(out / CHECKPOINT, recipe.key, precision, network, optimizer, so_far)
        left_s = (training.epochs - epoch - 1) * sum(epoch_s) / len(epoch_s)
        progress(
            (epoch + 1) / training.epochs,
            f"{note}, loss {row['loss']:.3f}, train {row['train_top1_pct']:.1f} %, {duration(left_s)} left",
        )
    return network, precision, Counters(counters.curve, **stopwatch.spent())


def _resumed(
    path: Path, key: str, precision: str, network: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> Counters:
    """Restore the state of an earlier attempt at this recipe and precision, and return its progress."""
    found = read_checkpoint(path, progress)
    if found is None or found.key != key:
        return Counters()
    if found.precision != precision:
        progress(0.0, f"restarting at {precision}: the checkpoint is from training at {found.precision}")
        return Counters()
    found.restore(network, optimizer)
    return found.counters


def learning_rate(training: TeacherTraining, step: int, steps_per_epoch: int) -> float:
    """Learning rate of one step, counted from 0: linear warm-up, then half a cosine, or constant without ``zeta``.

    The cosine reaches 0 after ``zeta * epochs`` epochs, which include the warm-up; a student's
    (:mod:`rd3.evaluation.schedule`) stretches the epochs after the warm-up only.
    """
    warmup_steps = training.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return training.lr * min(1.0, (step + 1) / warmup_steps)
    if training.zeta is None:
        return training.lr
    decay_end = training.zeta * training.epochs * steps_per_epoch
    return training.lr * (1 + math.cos(math.pi * (step - warmup_steps) / (decay_end - warmup_steps))) / 2


def _train_epoch(
    epoch: int,
    network: NormalisedNetwork,
    optimizer: torch.optim.Optimizer,
    images: Images,
    recipe: TrainableRecipe,
    training: TeacherTraining,
    seed: int,
    precision: str,
    observer: Observer,
    report: Callable[[float], None],
) -> dict[str, float]:
    """One pass over the training images; returns its row of the training curve.  ``report`` gets the share done."""
    order = torch.randperm(len(images.labels), generator=generator(seed, "order", epoch))
    batches = [batch for batch in order.split(training.batch_size) if len(batch) > 1]
    stream = generator(seed, "augment", epoch)
    network.train()
    losses, right, lr = [], torch.zeros((), dtype=torch.int64, device=images.device), 0.0
    for index, batch in enumerate(batches):
        pixels, labels = images.batch(batch)
        views = augment(pixels, training, stream)
        with autocast(images.device, precision):
            logits = network(views)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=training.label_smoothing)
        lr = learning_rate(training, epoch * len(batches) + index, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        observer.step(batch, logits.detach().float(), labels)
        right += (logits.detach().argmax(dim=1) == labels).sum()
        report((index + 1) / len(batches))
    # The one place of an epoch that waits for the device.
    values = torch.stack(losses).tolist()
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise Diverged(
                f"The loss of {recipe.label()} became {value} in epoch {epoch + 1} of {training.epochs}, "
                f"step {index + 1} of {len(batches)}.",
                "lower the learning rate or lengthen the warm-up",
            )
    seen = sum(len(batch) for batch in batches)
    loss_sum = sum(value * len(batch) for value, batch in zip(values, batches, strict=True))
    return {"epoch": epoch + 1, "loss": loss_sum / seen, "train_top1_pct": 100 * int(right) / seen, "lr": lr}


def augment(pixels: torch.Tensor, how: TeacherTraining | CollectionSettings, stream: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float32 in [0, 1]: crop and flip, drawn for each image separately."""
    if how.crop == "pad":
        pixels = pad_crop(pixels, pixels.shape[-1] // 8, stream)
    views = to_unit(pixels)
    if how.crop == "resized":
        views = resized_crop(views, views.shape[-1], 0.08, stream)
    return horizontal_flip(views, stream) if how.flip else views


class Images:
    """Batches of a split on the device: indexed from a copy there if it fits, otherwise copied batch by batch.

    ``split`` is ``train``, or ``fit``: the nine tenths of it that are not held out for tuning.
    """

    def __init__(self, dataset: Dataset, split: SourceSplit, device: torch.device):
        assert split != "unknown", "check_training_images refuses it"
        self.dataset, self.device = dataset, device
        self.split: Split = split
        self.labels = torch.from_numpy(dataset.labels(self.split).copy()).to(device)
        size = len(self.labels) * 3 * dataset.info.resolution**2
        held = device.type != "cpu" and size <= HELD_BYTES
        self.pixels = dataset.images(self.split, range(len(self.labels))).to(device) if held else None

    def batch(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) uint8 and (B,) int64 at these positions."""
        there = positions.to(self.device)
        if self.pixels is not None:
            return self.pixels[there], self.labels[there]
        return self.dataset.images(self.split, positions.tolist()).to(self.device), self.labels[there]


def within_epochs(progress: Progress, finished: int, epochs: int, note: str) -> Callable[[float], None]:
    """A function of the share of an epoch that is done, which reports progress every :data:`REPORT_EVERY_S` seconds.

    ``finished``: epochs before this one.  On a CPU an epoch may take many minutes; a stop takes effect at a report.
    """
    reported = [time.monotonic()]

    def report(share: float) -> None:
        if time.monotonic() - reported[0] >= REPORT_EVERY_S:
            reported[0] = time.monotonic()
            progress((finished + share) / epochs, note)

    return report
