"""Decoupled knowledge distillation."""

from __future__ import annotations

from pydantic import Field

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen


class DKDSettings(Frozen):
    """Settings of ``dkd``; the defaults are those for CIFAR-100."""

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the divergence of the target class against all others."""
    beta: float = Field(default=8.0, ge=0)
    """Weight of the divergence among the other classes."""
    temperature: float = Field(default=4.0, gt=0)
    """Softmax temperature of teacher and student."""
    ce_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with hard labels."""
    ramp_epochs: int = Field(default=20, ge=1)
    """Epochs over which the weight of the two divergences grows linearly to 1."""


# of_teacher: it needs only their softmax at ``temperature``, which mixed or truncated labels define as well
@register_loss("dkd", DKDSettings, labels="soft", of_teacher="softmax")
def dkd(student_logits: torch.Tensor, targets: LossTargets, settings: DKDSettings) -> torch.Tensor:
    """Decoupled distillation: KL of the target class against the rest, and KL among the rest, weighted apart.

    ``ce_weight CE + min(epoch / ramp_epochs, 1) T^2 (alpha TCKD + beta NCKD)``.  Under CutMix and MixUp the target
    class is the base image's.  Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022;
    megvii-research/mdistiller ``mdistiller/distillers/DKD.py``.
    """
    from rd3.losses._target_class import among_the_rest, target_and_rest

    assert targets.teacher_logits is not None
    student, labels = student_logits.float(), targets.labels
    scaled = student / settings.temperature, targets.teacher_logits.float() / settings.temperature

    def divergence(of_student: torch.Tensor, of_teacher: torch.Tensor) -> torch.Tensor:
        return F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)

    tckd = divergence(*(target_and_rest(F.log_softmax(logits, dim=1), labels) for logits in scaled))
    nckd = divergence(*(among_the_rest(logits, labels) for logits in scaled))
    decoupled = settings.alpha * tckd + settings.beta * nckd
    # epoch counts from 1; a scalar tensor in a captured CUDA graph, where a number would be frozen
    ramp = targets.epoch / settings.ramp_epochs
    ramp = ramp.clamp(max=1) if isinstance(ramp, torch.Tensor) else min(ramp, 1.0)
    return settings.ce_weight * F.cross_entropy(student, labels) + ramp * settings.temperature**2 * decoupled
