"""Training steps on CUDA as graphs: captured once for each batch size, then launched as one."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch

from rd3.losses import LossTargets

PLAIN_STEPS = 3
"""Steps of each batch size that run kernel by kernel before one is captured, so that the optimizer's state and cuDNN's
choices exist; the last of them is watched for waits."""

Step = Callable[[torch.Tensor, LossTargets], torch.Tensor]
"""Takes a step on images and targets, and returns its loss: a scalar without a gradient."""


class GraphedSteps:
    """Calls a step, first kernel by kernel, then by replaying its graph; the results are the same to the bit.

    A step of a small network consists of hundreds of kernels, each shorter than its launch by Python.  A graph launches
    them all at once.  All calls must be made on one stream other than the default one.  Steps that wait for the device
    cannot be captured.  Those that draw random numbers on it, as dropout does, are not: graphs that run side by side
    share one generator, whose state a replay sets on its own stream while kernels of another still read it.
    """

    def __init__(self, step: Step):
        self._step = step
        self._taken: Counter[int] = Counter()
        self._graphs: dict[int, _Captured] = {}
        self._stays_plain = False

    def __call__(self, images: torch.Tensor, targets: LossTargets) -> torch.Tensor:
        """The loss of one step, a tensor of its own."""
        size = len(images)
        if size not in self._graphs:
            self._taken[size] += 1
            if self._stays_plain or self._taken[size] < PLAIN_STEPS:
                return self._step(images, targets)
            if self._taken[size] == PLAIN_STEPS:
                return self._watched(images, targets)
            self._graphs[size] = _Captured(self._step, images, targets)
        return self._graphs[size].replay(images, targets)

    def _watched(self, images: torch.Tensor, targets: LossTargets) -> torch.Tensor:
        """A plain step that also finds out whether steps can be captured."""
        before = torch.cuda.get_rng_state(images.device)
        with _waiting() as waits:
            loss = self._step(images, targets)
        self._stays_plain = bool(waits) or not torch.equal(before, torch.cuda.get_rng_state(images.device))
        return loss


@contextlib.contextmanager
def _waiting() -> Iterator[list[warnings.WarningMessage]]:
    """Inside ``with``, collect the places that wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            # The mode itself is announced by another warning, once a process.
            found[:] = [each for each in found if "called a synchronizing" in str(each.message)]


class _Captured:
    """The graph of a step, and the tensors that it reads and writes."""

    def __init__(self, step: Step, images: torch.Tensor, targets: LossTargets):
        self._inputs = [torch.empty_like(value) for value in _tensors(images, targets)]
        own_images, labels, mixed, lam, epoch, *logits = self._inputs
        own_targets = LossTargets(logits[0] if logits else None, labels, mixed, lam, epoch)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(images.device)
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._loss = step(own_images, own_targets)

    def replay(self, images: torch.Tensor, targets: LossTargets) -> torch.Tensor:
        torch._foreach_copy_(self._inputs, _tensors(images, targets))
        self._graph.replay()
        return self._loss.clone()


def _tensors(images: torch.Tensor, targets: LossTargets) -> list[torch.Tensor]:
    assert isinstance(targets.lam, torch.Tensor) and isinstance(targets.epoch, torch.Tensor)
    logits = [] if targets.teacher_logits is None else [targets.teacher_logits]
    return [images, targets.labels, targets.labels_mixed, targets.lam, targets.epoch, *logits]
