"""Soft labels in post-evaluation: those of teachers, which label views ahead of the students, and a set's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.device import autocast, set_memory_format
from rd3.evaluation.cached_logits import CachedLogits, LogitsStream
from rd3.evaluation.hybrid import combine_logits
from rd3.evaluation.stored import ABSENT, mixture, restored, stored
from rd3.evaluation.views import Batch, views
from rd3.losses import LOSSES
from rd3.models import folded
from rd3.protocol import EvalProtocol
from rd3.recipe import EvaluationRecipe
from rd3.soft_labels import SoftLabels

AHEAD, AHEAD_ELSEWHERE = {"cpu": 256}, 1024
"""Number of images that teachers label at once, by type of device, in whole batches; one batch where its statistics
count (``teacher_mode`` ``batch``)."""
FLOOR = 1e-12
"""Smallest probability whose logarithm is taken for losses that need logits; that is -27.6."""


def frozen(teacher: nn.Module, mode: str, precision: str, device: torch.device) -> nn.Module:
    """A frozen copy of a teacher for inference; ``mode`` is the protocol's ``teacher_mode``."""
    if mode == "eval":
        own = folded(teacher).to(device)  # with batch norms folded into convolutions
    else:
        own = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        for module in own.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Without running statistics a batch norm uses batch statistics even in eval mode; dropout stays off.
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
    set_memory_format(own, precision)
    return own


class LabelledViews:
    """Batches with the teachers' logits, for one or several evaluations that share them."""

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        teachers: Sequence[nn.Module],
        recipe: EvaluationRecipe,
        precision: str,
        once: OnceLabels | None = None,
        cached: CachedLogits | None = None,
        frozen_copy: Callable[[nn.Module], nn.Module] = lambda teacher: teacher,
    ):
        """``recipe`` is any of those sharing the views; ``once``: the set's own labels, which need no teacher.

        ``cached``: cached logits of the teachers; call :meth:`close` after use.  ``frozen_copy`` returns the network
        that labels for a teacher, the same for every batch, on the device of ``images``; by default the teachers do,
        and are frozen already.
        """
        self._teachers, self._frozen_copy, self._precision = teachers, frozen_copy, precision
        self.cached_logits: LogitsStream | None = None
        protocol, device = recipe.protocol, images.device
        wanted = AHEAD.get(device.type, AHEAD_ELSEWHERE)
        ahead = max(1, wanted // protocol.batch_size) if teachers and protocol.teacher_mode == "eval" else 1
        self._chunks = views(images, labels, protocol, recipe.student_seed, ahead)
        self.once = once
        """The labels of the images, if these are labelled instead of views."""
        if teachers and protocol.soft_labels == "once":
            parts = [self._logits(to_unit(some)) for some in images.split(wanted)]
            self.once = OnceLabels([torch.cat(of_teacher) for of_teacher in zip(*parts, strict=True)])
        elif teachers and cached is not None:
            self.cached_logits = LogitsStream(cached, recipe, len(images), device, precision, ahead)

    def close(self) -> None:
        """Close cached logits."""
        if self.cached_logits is not None:
            self.cached_logits.close()

    def __iter__(self) -> Iterator[LabelledBatch]:
        for chunk in self._chunks:
            sizes = [len(batch.images) for batch in chunk.batches]
            logits = [each.split(sizes) for each in self._logits(chunk.pixels)] if self.once is None else []
            for place, batch in enumerate(chunk.batches):
                yield LabelledBatch(batch, [of_teacher[place] for of_teacher in logits], self.once)

    def _logits(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(N, C) float32 logits of each teacher."""

        def computed() -> list[torch.Tensor]:
            # At first use; weights that are made in inference mode would stay bound to it.
            teachers = [self._frozen_copy(teacher) for teacher in self._teachers]
            with torch.inference_mode(), autocast(pixels.device, self._precision):
                return [teacher(pixels) for teacher in teachers]

        logits = computed() if self.cached_logits is None else self.cached_logits.logits(len(pixels), computed)
        # A copy, as tensors created in inference mode cannot be saved for a backward pass.
        return [each.to(torch.float32, copy=True) for each in logits]


class OnceLabels:
    """One soft label for each image of a set, from the image without augmentation."""

    def __init__(self, logits: list[torch.Tensor]):
        """``logits``: (N, C) float32 of each teacher."""
        self.logits = logits
        self._tables: dict[int, tuple[torch.Tensor, EvalProtocol]] = {}

    def _table(self, protocol: EvalProtocol) -> torch.Tensor:
        """Result of :meth:`_computed`, computed once for each protocol object."""
        if id(protocol) not in self._tables:
            self._tables[id(protocol)] = self._computed(protocol), protocol  # kept, so that no other gets its id
        return self._tables[id(protocol)][0]

    def _computed(self, protocol: EvalProtocol) -> torch.Tensor:
        """(N, C) float32 logits as a protocol combines and stores them."""
        return as_stored(combine_logits(self.logits, protocol), protocol)

    def of(self, batch: Batch, protocol: EvalProtocol) -> torch.Tensor:
        """(B, C) float32 logits for the views of a batch; those of mixed images are mixed as probabilities."""
        table = self._table(protocol)
        own = table[batch.rows]
        if not protocol.mixes_images:
            return own
        # Protocols with a loss without a temperature are refused.
        return mixture(own, table[batch.rows_mixed], float(batch.targets.lam), protocol.loss.settings["temperature"])


class OwnLabels(OnceLabels):
    """One soft label for each image, which the set comes with; mixed as those of teachers that label images once."""

    def __init__(self, own: SoftLabels, device: torch.device):
        super().__init__([])
        self._own = SoftLabels(own.values.to(device), own.kind)

    def _computed(self, protocol: EvalProtocol) -> torch.Tensor:
        return own_logits(self._own, LOSSES.get(protocol.loss.name).of_teacher == "softmax")


def own_logits(own: SoftLabels, softmax_only: bool) -> torch.Tensor:
    """(N, C) float32 logits of a set's own labels: logits as they are, of probabilities their logarithms.

    Logarithms of probabilities are logits up to a constant for each image, on which softmaxes do not depend: a loss at
    temperature 1 sees exactly the probabilities, one at temperature T sees p^(1/T), normalised.  If p is the softmax of
    a teacher at temperature 1, that is the teacher's softmax at T; if it is one at temperature S, it is that at S T.

    ``softmax_only``: the loss uses only the softmax of the logits, not the logits themselves.  Then a probability of 0
    is 0 at every temperature; else probabilities are raised to at least :data:`FLOOR`.
    """
    if own.kind == "logits":
        return own.values.float()
    probabilities = own.values.double()
    if not softmax_only:
        return probabilities.clamp(min=FLOOR).log().float()
    logs = probabilities.log()
    return torch.where(probabilities > 0, logs, logs.amax(dim=1, keepdim=True) - ABSENT).float()


class LabelledBatch(NamedTuple):
    """One batch with the logits of each teacher, or with the labels of its images."""

    batch: Batch
    logits: list[torch.Tensor]
    """(B, C) float32 of each teacher; none with ``once``, or without teachers."""
    once: OnceLabels | None = None

    def with_labels_of(self, protocol: EvalProtocol) -> Batch:
        """The batch with soft labels, combined and stored as the protocol specifies; unchanged for hard labels."""
        if self.once is not None:
            logits = self.once.of(self.batch, protocol)
        elif self.logits:
            logits = combine_logits(self.logits, protocol)
            logits = as_stored(logits, protocol) if protocol.soft_labels == "stored" else logits
        else:
            return self.batch
        return replace(self.batch, targets=replace(self.batch.targets, teacher_logits=logits))


def as_stored(logits: torch.Tensor, protocol: EvalProtocol) -> torch.Tensor:
    """(B, C) float32 logits, rounded and cut to the largest as stored soft labels are."""
    return restored(stored(logits, protocol), logits.shape[1])
