"""Distillation of standardised logits."""

from __future__ import annotations

from pydantic import Field

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen

_TINY = 1e-7
"""Added to the standard deviation, as in the published code."""


class LSKDSettings(Frozen):
    """Settings of ``lskd``; the defaults are those for CIFAR-100."""

    kd_weight: float = Field(default=9.0, ge=0)
    """Weight of the divergence."""
    ce_weight: float = Field(default=0.1, ge=0)
    """Weight of the cross-entropy with hard labels."""
    temperature: float = Field(default=2.0, gt=0)
    """Softmax temperature of the standardised logits of teacher and student, whose standard deviation is 1."""


@register_loss("lskd", LSKDSettings, labels="soft")
def lskd(student_logits: torch.Tensor, targets: LossTargets, settings: LSKDSettings) -> torch.Tensor:
    """KL(teacher || student) of logits that are standardised image by image, and cross-entropy with base labels.

    Each image's logits are shifted and scaled to mean 0 and (unbiased) standard deviation 1 over the classes; the
    divergence is multiplied by the squared temperature.  Source: Sun et al., "Logit Standardization in Knowledge
    Distillation", CVPR 2024; sunshangquan/logit-standardization-KD.
    """
    assert targets.teacher_logits is not None

    def log_p(logits: torch.Tensor) -> torch.Tensor:
        centred = logits - logits.mean(dim=1, keepdim=True)
        return F.log_softmax(centred / (logits.std(dim=1, keepdim=True) + _TINY) / settings.temperature, dim=1)

    student, teacher = student_logits.float(), targets.teacher_logits.float()
    divergence = F.kl_div(log_p(student), log_p(teacher), reduction="batchmean", log_target=True)
    hard = F.cross_entropy(student, targets.labels)
    return settings.kd_weight * settings.temperature**2 * divergence + settings.ce_weight * hard
