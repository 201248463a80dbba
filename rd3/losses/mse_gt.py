"""Mean squared error of logits with a hard-label term: the loss of G-VBSM and EDC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd3.losses._base import LossTargets, register_loss
from rd3.protocol import EvalProtocol

if TYPE_CHECKING:
    import torch


@register_loss("mse_gt", reads=("gamma",))
def mse_gt(student_logits: torch.Tensor, targets: LossTargets, protocol: EvalProtocol) -> torch.Tensor:
    """Squared error of raw logits, mean over images and classes, plus gamma times cross-entropy with the base labels.

    Source: RD3, Table 17 (gamma 0.025, as EDC).
    """
    from torch.nn import functional as F

    student = student_logits.float()
    distance = F.mse_loss(student, targets.teacher_logits.float())
    return distance + protocol.gamma * F.cross_entropy(student, targets.labels)
