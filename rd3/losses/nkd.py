"""Normalised knowledge distillation."""

from __future__ import annotations

from pydantic import Field

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen


class NKDSettings(Frozen):
    """Settings of ``nkd``; the defaults are those for ImageNet-1K."""

    gamma: float = Field(default=1.5, ge=0)
    """Weight of the cross-entropy among the classes other than the target."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature among the other classes; that of the target class is 1."""
    ce_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with hard labels."""


@register_loss("nkd", NKDSettings, labels="soft")
def nkd(student_logits: torch.Tensor, targets: LossTargets, settings: NKDSettings) -> torch.Tensor:
    """Normalised distillation: the teacher's probability of the target class, and its distribution among the rest.

    ``ce_weight CE - mean p_t(y) log p_s(y) - gamma T^2 mean sum q_t log q_s`` for teacher t, student s and temperature
    T, with q among the classes other than y.  Source: Yang et al., "From Knowledge
    Distillation to Self-Knowledge Distillation", ICCV 2023; yzd-v/cls_KD ``mmcls/models/dis_losses/nkd.py``.

    Deviation: under CutMix and MixUp y is the base image's class, there the class with the larger share.
    """
    from rd3.losses._target_class import among_the_rest

    assert targets.teacher_logits is not None
    student, teacher, labels = student_logits.float(), targets.teacher_logits.float(), targets.labels
    log_p, log_p_teacher = (F.log_softmax(logits, dim=1).gather(1, labels[:, None]) for logits in (student, teacher))
    of_target = -(log_p_teacher.exp() * log_p).mean()
    log_q, log_q_teacher = (among_the_rest(logits / settings.temperature, labels) for logits in (student, teacher))
    of_rest = -(log_q_teacher.exp() * log_q).sum(dim=1).mean()
    hard = F.cross_entropy(student, labels)
    return settings.ce_weight * hard + of_target + settings.gamma * settings.temperature**2 * of_rest
