"""Kullback-Leibler divergence at a temperature: the loss of the RD3 protocol."""

from __future__ import annotations

from pydantic import Field

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen


class KLSettings(Frozen):
    temperature: float = Field(default=20.0, gt=0)
    """Softmax temperature of teacher and student (not stated in the paper)."""
    scale_t2: bool = False
    """Multiply the loss by the squared temperature (not stated in the paper; as in the released code)."""


@register_loss("kl", KLSettings, labels="soft", of_teacher="softmax")
def kl(student_logits: torch.Tensor, targets: LossTargets, settings: KLSettings) -> torch.Tensor:
    """KL(teacher || student) at one temperature, summed over classes, averaged over images.

    Multiplied by the squared temperature only if ``scale_t2`` is set.  Source: LINs-lab/RDED.
    """
    assert targets.teacher_logits is not None
    student = F.log_softmax(student_logits.float() / settings.temperature, dim=1)
    teacher = F.log_softmax(targets.teacher_logits.float() / settings.temperature, dim=1)
    loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * settings.temperature**2 if settings.scale_t2 else loss
