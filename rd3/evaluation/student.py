"""Training of one student in post-evaluation: a step, the end of an epoch, the test."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.device import autocast, peak_mib, set_memory_format
from rd3.errors import Diverged
from rd3.evaluation.result import EvalResult
from rd3.evaluation.schedule import zeta_cosine
from rd3.evaluation.views import Batch
from rd3.losses import LOSSES
from rd3.models import build_network
from rd3.protocol import EvalProtocol
from rd3.recipe import EvaluationRecipe
from rd3.seeding import ForkedRNG, generator

if TYPE_CHECKING:
    from rd3.datasets import Dataset, Split

TEST_BATCH = 250

Progress = Callable[[float, str], None]
"""Called with the finished fraction (0-1) and a readable note, at least once per epoch."""
Tested = Callable[[int, float], None]
"""Called with an epoch (1-based) and the top-1 accuracy after it in per cent."""


class StudentTraining:
    """A student, its optimizer and its training curve.

    Several may take steps in turn in one process; they are independent, as each has its own random generators.
    """

    def __init__(
        self,
        recipe: EvaluationRecipe,
        dataset: Dataset,
        images: int,
        device: torch.device,
        precision: str,
        progress: Progress = lambda fraction, note: None,
        tested: Tested | None = None,
    ):
        """``images``: number of images in the set."""
        self._wall, self._process = time.perf_counter(), time.process_time()
        self.recipe, self.dataset, self.device, self.precision = recipe, dataset, device, precision
        protocol, info = recipe.protocol, dataset.info
        stream = generator(recipe.student_seed, "init")
        self.network = build_network(recipe.student, info.num_classes, recipe.resolution, recipe.normalisation, stream)
        self.network = self.network.to(device)
        set_memory_format(self.network, precision)
        self._optimizer = make_optimizer(self.network, protocol)
        self._loss = LOSSES.get(protocol.loss.name)
        self._settings = self._loss.Settings.model_validate(protocol.loss.settings)
        # Dropout and stochastic depth draw from torch's own generators.
        self._rng = ForkedRNG(device, recipe.student_seed, "dropout")
        # CUDA kernels of several students may run concurrently, each on its own stream.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tested, self._total = tested, len(dataset.labels(recipe.tested_on))
        self._test_epochs = set(protocol.test_epochs) | {protocol.epochs}
        self._watch = _ProgressTracker(protocol.epochs, images, len(self._test_epochs) * self._total, progress)
        self._curve: list[dict[str, float]] = []
        self._tests: dict[int, torch.Tensor] = {}
        self._begin_epoch(1)

    def _begin_epoch(self, epoch: int) -> None:
        protocol = self.recipe.protocol
        self._lr = protocol.lr * zeta_cosine(epoch - 1, protocol.epochs, protocol.zeta, protocol.warmup_epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr
        self._losses: list[torch.Tensor] = []
        self._counts: list[int] = []
        self._right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.network.train()

    def step(self, batch: Batch) -> None:
        """Train on one batch.  On CUDA the work is queued; :meth:`join` makes the current stream wait for it."""
        with self._own_stream(), self._rng:
            with autocast(self.device, self.precision):
                if self.recipe.protocol.extra_student_forward:
                    with torch.no_grad():
                        self.network(batch.images)
                logits = self.network(batch.images)
            loss = self._loss(logits, batch.targets, self._settings)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._losses.append(loss.detach())
            self._counts.append(len(logits))
            self._right += (logits.detach().argmax(dim=1) == batch.targets.labels).sum()

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
        """End the epoch; the only method that waits for the device.

        Raises :class:`Diverged` if a loss was not finite, and any exception of ``tested``.
        """
        epoch = len(self._curve) + 1
        losses = torch.stack(self._losses).tolist()
        self._curve.append(_epoch_row(epoch, losses, self._counts, int(self._right), self._lr, self._curve))
        self._watch.trained(epoch)
        if epoch in self._test_epochs:
            self._tests[epoch] = correct_per_class(
                self.network, self.dataset, self.recipe.tested_on, self.device, self.precision, self._watch
            )
            if self._tested is not None and epoch in self.recipe.protocol.test_epochs:
                self._tested(epoch, self._top1_pct(epoch))
        if epoch < self.recipe.protocol.epochs:
            self._begin_epoch(epoch + 1)

    def _top1_pct(self, epoch: int) -> float:
        return 100 * int(self._tests[epoch].sum()) / self._total

    def result(self) -> EvalResult:
        """Test the student; call after the last epoch."""
        protocol = self.recipe.protocol
        per_class = self._tests[protocol.epochs].tolist()
        return EvalResult(
            tested_on=self.recipe.tested_on,
            ran_precision=self.precision,
            correct=sum(per_class),
            tested=self._total,
            top1_pct=self._top1_pct(protocol.epochs),
            per_class_correct=per_class,
            final_loss=self._curve[-1]["loss"],
            epochs_run=len(self._curve),
            curve=self._curve,
            diagnostics={epoch: self._top1_pct(epoch) for epoch in sorted(protocol.test_epochs)},
            wall_s=time.perf_counter() - self._wall,
            process_s=time.process_time() - self._process,
            peak_mib=peak_mib(self.device),
        )


def make_optimizer(student: nn.Module, protocol: EvalProtocol) -> torch.optim.Optimizer:
    """The optimizer; weight decay applies only to ``weight`` tensors of two or more dimensions (LINs-lab/RDED)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        (decayed if "weight" in name and parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": protocol.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=protocol.lr, momentum=protocol.beta1)
    return torch.optim.AdamW(groups, lr=protocol.lr, betas=(protocol.beta1, protocol.beta2), fused=True)


def _epoch_row(
    epoch: int, losses: list[float], counts: list[int], right: int, lr: float, curve: list[dict[str, float]]
) -> dict[str, float]:
    """The row of one epoch in the curve; raises :class:`Diverged` if a loss is not finite."""
    broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if broken is not None:
        before = losses[broken - 1] if broken else curve[-1]["loss"] if curve else None
        finite = f"{before:.6g}" if before is not None else "none"
        raise Diverged(
            f"The loss is {losses[broken]} in epoch {epoch}, step {broken + 1} of {len(losses)}; "
            f"the last finite one was {finite}.",
            "lower lr or check the set and the teacher",
        )
    seen = sum(counts)
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / seen
    return {"epoch": epoch, "loss": mean, "lr": lr, "train_top1_pct": 100 * right / seen}


def correct_per_class(
    student: nn.Module, dataset: Dataset, split: Split, device: torch.device, precision: str, watch: _ProgressTracker
) -> torch.Tensor:
    """(C,) int64 on the CPU: correct predictions per class over the whole split, in eval mode."""
    truth = torch.tensor(dataset.labels(split))
    right = torch.zeros(dataset.info.num_classes, dtype=torch.int64)
    student.eval()
    for places in torch.arange(len(truth)).split(TEST_BATCH):
        pixels = to_unit(dataset.images(split, places.tolist()).to(device))
        with torch.no_grad(), autocast(device, precision):
            guess = student(pixels).argmax(dim=1).cpu()
        own = truth[places]
        right += torch.bincount(own[guess == own], minlength=len(right))
        watch.tested(len(places))
    return right


class _ProgressTracker:
    """Converts finished work to a fraction and a note with the remaining time.

    Work is counted in forward passes: a training image costs four (student forward and backward, teacher), a test
    image one.
    """

    def __init__(self, epochs: int, images: int, test_images: int, progress: Progress):
        self.epochs, self.images, self.progress = epochs, images, progress
        self.work = 4 * epochs * images + test_images
        self.done = self.epoch = 0
        self.start = time.perf_counter()

    def trained(self, epoch: int) -> None:
        self.epoch = epoch
        self._advance(4 * self.images, "training")

    def tested(self, images: int) -> None:
        self._advance(images, "testing")

    def _advance(self, work: int, doing: str) -> None:
        self.done += work
        fraction = self.done / self.work
        left_s = (time.perf_counter() - self.start) * (1 - fraction) / fraction
        self.progress(fraction, f"{doing}, epoch {self.epoch}/{self.epochs}, {left_s:.0f} s left")
