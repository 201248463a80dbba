"""Cross-entropy with hard labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd3.losses._base import LossTargets, register_loss
from rd3.protocol import EvalProtocol

if TYPE_CHECKING:
    import torch


@register_loss("ce", reads=("hard_mix",))
def ce(student_logits: torch.Tensor, targets: LossTargets, protocol: EvalProtocol) -> torch.Tensor:
    """Cross-entropy with hard labels; under CutMix both labels by area, or the base label alone (``hard_mix``)."""
    from torch.nn import functional as F

    student = student_logits.float()
    base = F.cross_entropy(student, targets.labels)
    if protocol.hard_mix == "base":
        return base
    return targets.lam * base + (1 - targets.lam) * F.cross_entropy(student, targets.labels_mixed)
