"""What a loss is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from rd3.component import NoSettings
from rd3.lazy import torch
from rd3.registry import Registry
from rd3.values import Frozen

Labels = Literal["soft", "hard"]
OfTeacher = Literal["logits", "softmax"]


@dataclass(frozen=True)
class LossTargets:
    """Targets of the student for one batch."""

    teacher_logits: torch.Tensor | None
    """(B, C) float32 logits of all teachers combined, for the pixels that the student sees or, with one label per image
    (soft labels ``once`` or ``own``), for the images before augmentation; None with hard labels."""
    labels: torch.Tensor
    """(B,) int64 labels of the base images."""
    labels_mixed: torch.Tensor
    """(B,) int64 labels of the images mixed in; equal to ``labels`` without CutMix or MixUp."""
    lam: float | torch.Tensor
    """Share of the base image (0-1) in mixed images, equal for the whole batch; on CUDA a float32 scalar there, as a
    number would be frozen in a captured graph."""
    epoch: float | torch.Tensor = 1
    """Epoch, from 1; on CUDA, as ``lam``, a float32 scalar on the device."""

    def split(self, parts: int) -> list[LossTargets]:
        """The targets of ``parts`` parts of the batch, whose sizes differ by one at most."""
        logits = [None] * parts if self.teacher_logits is None else self.teacher_logits.tensor_split(parts)
        of_parts = zip(logits, self.labels.tensor_split(parts), self.labels_mixed.tensor_split(parts), strict=True)
        return [LossTargets(*of_images, self.lam, self.epoch) for of_images in of_parts]


LossFunction = Callable[["torch.Tensor", LossTargets, Any], "torch.Tensor"]
"""(student logits (B, C), targets, settings) to a scalar in fp32; the docstring's first line is its summary."""


class Loss(Protocol):
    """A registered loss: the function, with its settings and the labels that it learns from."""

    Settings: type[Frozen]
    labels: Labels
    of_teacher: OfTeacher
    """What it uses of the teachers' outputs: the ``logits``, or only their ``softmax`` at its setting ``temperature``,
    which labels that are mixed or cut to the largest classes still define."""

    def __call__(self, student_logits: torch.Tensor, targets: LossTargets, settings: Any, /) -> torch.Tensor:
        """The loss of one batch; see :data:`LossFunction`."""


UNSUPPORTED = {"crld": "it compares two views of every image, and a protocol trains on one"}
"""Published losses that a loss function cannot be, with the reason."""

LOSSES: Registry[Loss] = Registry("loss", "rd3.losses", UNSUPPORTED)


def register_loss(
    name: str, settings: type[Frozen] = NoSettings, *, labels: Labels, of_teacher: OfTeacher = "logits"
) -> Callable[[LossFunction], Loss]:
    """Register a loss under a name, which protocols then have in ``loss``: ``name`` or ``{name: {setting: value}}``.

    ``settings`` are its own, with defaults; ``labels``: those it learns from; ``of_teacher``: see :class:`Loss`.
    """

    def register(function: LossFunction) -> Loss:
        loss = cast(Loss, function)
        loss.Settings, loss.labels, loss.of_teacher = settings, labels, of_teacher
        return LOSSES.register(name)(loss)

    return register
