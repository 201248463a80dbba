"""Mean squared error of logits with a hard-label term: the loss of G-VBSM and EDC."""

from __future__ import annotations

from pydantic import Field

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen


class MSEGTSettings(Frozen):
    gamma: float = Field(default=0.025, ge=0)
    """Weight of the cross-entropy with hard labels relative to the squared error."""


@register_loss("mse_gt", MSEGTSettings, labels="soft")
def mse_gt(student_logits: torch.Tensor, targets: LossTargets, settings: MSEGTSettings) -> torch.Tensor:
    """Squared error of raw logits, averaged over images and classes, plus gamma times cross-entropy with base labels.

    Source: the RD3 paper, Table 17 (gamma 0.025, as EDC).
    """
    assert targets.teacher_logits is not None
    student = student_logits.float()
    distance = F.mse_loss(student, targets.teacher_logits.float())
    return distance + settings.gamma * F.cross_entropy(student, targets.labels)
