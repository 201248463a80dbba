"""Training of one student in post-evaluation: a step, the end of an epoch, the test."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.device import autocast, peak_mib, set_memory_format
from rd3.duration import duration
from rd3.errors import Diverged
from rd3.evaluation.budget import image_steps, label_bytes
from rd3.evaluation.cached_logits import CachedLogits
from rd3.evaluation.graphed import GraphedSteps
from rd3.evaluation.kept import save_student
from rd3.evaluation.result import EvalResult
from rd3.evaluation.schedule import rate_factor
from rd3.evaluation.views import Batch
from rd3.losses import LOSSES, LossTargets
from rd3.models import build_network
from rd3.protocol import EvalProtocol
from rd3.recipe import EvaluationRecipe
from rd3.seeding import ForkedRNG, generator
from rd3.soft_labels import SoftLabels
from rd3.stopwatch import Stopwatch

if TYPE_CHECKING:
    from rd3.datasets import Dataset, Split

TEST_BATCH = 250
"""Test images in one forward pass; affects results by rounding alone."""
READ_EVERY = 64
"""Steps after which losses are read on CUDA, as each read waits for the device; elsewhere every epoch's are."""

Progress = Callable[[float, str], None]
"""Called with the finished fraction (0-1) and a readable note, at least once per epoch."""
Tested = Callable[[int, float], None]
"""Called with an epoch (1-based) and the top-1 accuracy after it in per cent."""


@dataclass(frozen=True)
class Evaluation:
    """Input of one evaluation in a pack."""

    recipe: EvaluationRecipe
    images: torch.Tensor
    """(N, 3, H, W) uint8 or float32 in [0, 1]."""
    labels: torch.Tensor
    """(N,) int64."""
    teachers: Sequence[nn.Module] = ()
    """Networks that take pixels in [0, 1]; they are not modified."""
    progress: Progress = lambda fraction, note: None
    tested: Tested | None = None
    """Called after each test at the protocol's ``test_epochs``; its exceptions, as of a pruned trial, end training."""
    keep: Path | None = None
    """File for the weights of the trained student, which are those that are tested; None: they are not kept."""
    cached_logits: CachedLogits | None = None
    """Teacher logits on disk; those of the first evaluation of equal views count."""
    soft_labels: SoftLabels | None = None
    """Those that the set comes with, if any."""

    @property
    def own_label_bytes(self) -> int | None:
        return None if self.soft_labels is None else self.soft_labels.nbytes


@dataclass
class _Epoch:
    """An epoch whose losses and counts are still on the device."""

    number: int
    """From 1."""
    lr: float
    correct: torch.Tensor
    """Number of correct predictions for the training images, an int64 scalar."""
    losses: list[torch.Tensor] = field(default_factory=list)
    """Mean loss of each step, a scalar."""
    counts: list[int] = field(default_factory=list)
    """Number of images of each step."""

    def row(self, losses: list[float], correct: int, curve: list[dict[str, float]]) -> dict[str, float]:
        """The next row of the ``curve`` of earlier epochs; raises :class:`Diverged` if a loss is not finite."""
        broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if broken is not None:
            before = losses[broken - 1] if broken else curve[-1]["loss"] if curve else None
            finite = f"{before:.6g}" if before is not None else "none"
            raise Diverged(
                f"The loss is {losses[broken]} in epoch {self.number}, step {broken + 1} of {len(losses)}; "
                f"the last finite one was {finite}.",
                "lower lr or check the set and the teacher",
            )
        seen = sum(self.counts)
        mean = sum(loss * count for loss, count in zip(losses, self.counts, strict=True)) / seen
        return {"epoch": self.number, "loss": mean, "lr": self.lr, "train_top1_pct": 100 * correct / seen}


class StudentTraining:
    """A student, its optimizer and its training curve.

    Several may take steps in turn in one process; they are independent, as each has its own random generators.
    """

    def __init__(self, evaluation: Evaluation, dataset: Dataset, device: torch.device, precision: str):
        self._stopwatch = Stopwatch()
        self.recipe, self.dataset, self.device, self.precision = evaluation.recipe, dataset, device, precision
        recipe, protocol, info = self.recipe, self.recipe.protocol, dataset.info
        stream = generator(recipe.student_seed, "init")
        self.network = build_network(recipe.student, info.num_classes, recipe.resolution, recipe.normalisation, stream)
        self.network = self.network.to(device)
        set_memory_format(self.network, precision)
        self._optimizer = make_optimizer(self.network, protocol)
        self._average = ParameterAverage(self.network, protocol.ema) if protocol.ema else None
        self._loss = LOSSES.get(protocol.loss.name)
        self._settings = self._loss.Settings.model_validate(protocol.loss.settings)
        # Dropout and stochastic depth draw from torch's own generators.
        self._rng = ForkedRNG(device, recipe.student_seed, "dropout")
        # CUDA kernels of several students may run concurrently, each on its own stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._step = self._plain_step if self._stream is None else GraphedSteps(self._plain_step)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._evaluation = evaluation
        self._test_count = len(dataset.labels(recipe.tested_on))
        self._test_epochs = set(protocol.test_epochs) | {protocol.epochs}
        self._watch = _ProgressTracker(evaluation, len(self._test_epochs) * self._test_count)
        self._curve: list[dict[str, float]] = []
        self._unread: list[_Epoch] = []
        self._tests: dict[int, torch.Tensor] = {}
        self._epoch = self._begin_epoch(1)

    def _begin_epoch(self, number: int) -> _Epoch:
        lr = self.recipe.protocol.lr * rate_factor(self.recipe.protocol, number - 1)
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)  # in place, as graphs of steps go on reading this tensor
            else:
                group["lr"] = lr
        self._correct.zero_()
        self.network.train()
        return _Epoch(number, lr, self._correct)

    def step(self, batch: Batch) -> None:
        """Train on one batch.  On CUDA the work is queued; :meth:`join` makes the current stream wait for it."""
        with self._own_stream(), self._rng:
            self._epoch.losses.append(self._step(batch.images, self._targets(batch)))
            if self._average is not None:  # outside the graph of a step
                self._average.update()
            self._epoch.counts.append(len(batch.images))

    def _targets(self, batch: Batch) -> LossTargets:
        """The targets; on CUDA lambda and epoch are tensors, as a captured graph would not see numbers change."""
        if self._stream is None:
            return batch.targets
        lam, epoch = (
            torch.full((), float(value), dtype=torch.float32, device=self.device)
            for value in (batch.targets.lam, batch.targets.epoch)
        )
        return replace(batch.targets, lam=lam, epoch=epoch)

    def _plain_step(self, images: torch.Tensor, targets: LossTargets) -> torch.Tensor:
        """A step whose kernels are launched one by one; the loss."""
        # Batch normalisation needs two images in each part.
        parts = max(1, min(self.recipe.protocol.accumulation_steps, len(images) // 2))
        self._optimizer.zero_grad()
        pairs = zip(images.tensor_split(parts), targets.split(parts), strict=True)
        losses = [self._backward(*pair, weight=len(pair[0]) / len(images)) for pair in pairs]
        self._optimizer.step()
        return torch.stack(losses).sum() if parts > 1 else losses[0]

    def _backward(self, images: torch.Tensor, targets: LossTargets, weight: float) -> torch.Tensor:
        """Add the gradients of a part of a batch; its loss times ``weight``, its fraction of the batch's images."""
        with autocast(self.device, self.precision):
            if self.recipe.protocol.extra_student_forward:
                with torch.no_grad():  # for the statistics of batch norms, as RDED's released loop
                    self.network(images)
            logits = self.network(images)
        loss = weight * self._loss(logits, targets, self._settings)
        loss.backward()
        self._correct += (logits.detach().argmax(dim=1) == targets.labels).sum()
        return loss.detach()

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Make the current stream wait for this student's steps, after which batches may be freed."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def end_epoch(self) -> None:
        """End the epoch; waits for the device, on CUDA not in every epoch.

        Raises :class:`Diverged` if a loss was not finite, on CUDA some epochs later, and any exception of ``tested``.
        """
        epoch = self._epoch.number
        self._unread.append(replace(self._epoch, correct=self._correct.clone()))
        steps = sum(len(each.counts) for each in self._unread)
        if epoch in self._test_epochs or self._stream is None or steps >= READ_EVERY:
            self._read()
        self._watch.advance("training", epoch, 4 * len(self._evaluation.images))
        if epoch in self._test_epochs:
            tester = Tester(self.network, self.dataset, self.device, self.precision, self.recipe.protocol.test_resize)
            advance = partial(self._watch.advance, "testing", epoch)
            with self._as_tested():
                self._tests[epoch] = tester.correct_per_class(self.recipe.tested_on, advance)
            if self._evaluation.tested is not None and epoch in self.recipe.protocol.test_epochs:
                self._evaluation.tested(epoch, self._top1_pct(epoch))
        if epoch < self.recipe.protocol.epochs:
            self._epoch = self._begin_epoch(epoch + 1)

    def _as_tested(self) -> contextlib.AbstractContextManager[None]:
        """Inside ``with``, the network has the weights that the protocol tests."""
        return self._average.in_place() if self._average is not None else contextlib.nullcontext()

    def _read(self) -> None:
        """Add the epochs that have ended to the curve."""
        losses = torch.stack([loss for each in self._unread for loss in each.losses]).cpu()
        of_epochs = losses.split([len(each.losses) for each in self._unread])
        counts = torch.stack([each.correct for each in self._unread]).tolist()
        for each, own, correct in zip(self._unread, of_epochs, counts, strict=True):
            self._curve.append(each.row(own.tolist(), correct, self._curve))
        self._unread = []

    def _top1_pct(self, epoch: int) -> float:
        return 100 * int(self._tests[epoch].sum()) / self._test_count

    def result(self) -> EvalResult:
        """The result, once the student is trained and tested; writes its weights if they are to be kept."""
        protocol, evaluation = self.recipe.protocol, self._evaluation
        images, classes = len(evaluation.images), self.dataset.info.num_classes
        if evaluation.keep is not None:
            with self._as_tested():
                save_student(self.network, evaluation.keep)
        per_class = self._tests[protocol.epochs].tolist()
        return EvalResult(
            tested_on=self.recipe.tested_on,
            ran_precision=self.precision,
            correct=sum(per_class),
            tested=self._test_count,
            top1_pct=self._top1_pct(protocol.epochs),
            per_class_correct=per_class,
            final_loss=self._curve[-1]["loss"],
            epochs_run=len(self._curve),
            curve=self._curve,
            diagnostics={epoch: self._top1_pct(epoch) for epoch in sorted(protocol.test_epochs)},
            peak_mib=peak_mib(self.device),
            image_steps=image_steps(protocol, images),
            label_bytes=label_bytes(protocol, images, classes, evaluation.own_label_bytes),
            **self._stopwatch.spent(),
        )


class ParameterAverage:
    """Exponential moving average of a network's parameters, not of its buffers (shaoshitong/EDC, ``EMAMODEL``)."""

    def __init__(self, network: nn.Module, decay: float):
        self._live, self._decay = [parameter.detach() for parameter in network.parameters()], decay
        self._mean = [parameter.clone() for parameter in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """After a step: average <- decay * average + (1 - decay) * parameters."""
        torch._foreach_mul_(self._mean, self._decay)
        torch._foreach_add_(self._mean, self._live, alpha=1 - self._decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside ``with``, the network has the averages as its parameters, at the same addresses, as graphs need."""
        before = [parameter.clone() for parameter in self._live]
        torch._foreach_copy_(self._live, self._mean)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, before)


def make_optimizer(student: nn.Module, protocol: EvalProtocol) -> torch.optim.Optimizer:
    """The protocol's SGD or AdamW.

    ``weight_decay_on`` ``matrices``: of ``weight`` tensors of two or more dimensions (LINs-lab/RDED).
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    everywhere = protocol.weight_decay_on == "all"
    for name, parameter in student.named_parameters():
        (decayed if everywhere or ("weight" in name and parameter.ndim > 1) else not_decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": protocol.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    device = next(student.parameters()).device
    on_cuda = device.type == "cuda"
    # A captured graph of a step (GraphedSteps) would repeat a number, but reads a tensor anew each time.
    lr = torch.tensor(protocol.lr, device=device) if on_cuda else protocol.lr
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=protocol.beta1, fused=on_cuda or None)
    betas = (protocol.beta1, protocol.beta2)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True, capturable=on_cuda)


@dataclass(frozen=True)
class Tester:
    """Runs a network on all images of a split, as students are tested."""

    network: nn.Module
    dataset: Dataset
    device: torch.device
    precision: str
    resize: int = 0
    """Side in pixels to which images are resized before a centre crop to their own; 0 leaves them as they are."""

    def correct_per_class(self, split: Split, tested: Callable[[int], None]) -> torch.Tensor:
        """(C,) int64 on the CPU: correct predictions per class over the whole split, in eval mode.

        ``tested`` is called with the number of images of each batch.
        """
        labels = torch.tensor(self.dataset.labels(split))
        predictions = []
        self.network.eval()
        for logits in self.logits(split):
            predictions.append(logits.argmax(dim=1))
            tested(len(logits))
        correct = labels[torch.cat(predictions).cpu() == labels]
        return torch.bincount(correct, minlength=self.dataset.info.num_classes)

    def logits(
        self, split: Split, change: Callable[[torch.Tensor, list[int]], torch.Tensor] = lambda images, places: images
    ) -> Iterator[torch.Tensor]:
        """(B, C) logits of the images, in the order of the split, batch by batch.

        ``change`` is applied first, to images (B, 3, H, H) uint8 and their places in the split.
        """
        for positions in torch.arange(len(self.dataset.labels(split))).split(TEST_BATCH):
            places = positions.tolist()
            images = change(self.dataset.images(split, places), places)
            pixels = to_unit((_centre_of_resized(images, self.resize) if self.resize else images).to(self.device))
            with torch.no_grad(), autocast(self.device, self.precision):
                logits = self.network(pixels)
            yield logits


def _centre_of_resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (B, 3, H, H) uint8 resized to ``side`` with antialiasing, and their centre of H x H pixels."""
    from torchvision.transforms.v2 import functional as F

    centre: torch.Tensor = F.center_crop(F.resize(images, [side, side], antialias=True), list(images.shape[-2:]))
    return centre


class _ProgressTracker:
    """Converts finished work to a fraction and a note with the remaining time.

    Work is counted in forward passes: a test image costs one, a training image four (teacher; student and backward).
    """

    def __init__(self, evaluation: Evaluation, test_images: int):
        self.epochs, self.progress = evaluation.recipe.protocol.epochs, evaluation.progress
        self.work = 4 * self.epochs * len(evaluation.images) + test_images
        self.done, self.start = 0, time.perf_counter()

    def advance(self, doing: str, epoch: int, work: int) -> None:
        self.done += work
        fraction = self.done / self.work
        left_s = (time.perf_counter() - self.start) * (1 - fraction) / fraction
        self.progress(fraction, f"{doing}, epoch {epoch}/{self.epochs}, {duration(left_s)} left")
