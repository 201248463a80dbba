"""Cross-entropy with hard labels."""

from __future__ import annotations

from typing import Literal

from rd3.lazy import F, torch
from rd3.losses._base import LossTargets, register_loss
from rd3.values import Frozen


class CESettings(Frozen):
    hard_mix: Literal["weighted", "base"] = "weighted"
    """Targets of mixed images: ``weighted`` uses both labels in proportion to their share of the image, ``base`` only
    the base image's label (not stated in the paper)."""


@register_loss("ce", CESettings, labels="hard")
def ce(student_logits: torch.Tensor, targets: LossTargets, settings: CESettings) -> torch.Tensor:
    """Cross-entropy with hard labels; mixed images have both labels by share, or the base label (``hard_mix``)."""
    student = student_logits.float()
    base = F.cross_entropy(student, targets.labels)
    if settings.hard_mix == "base":
        return base
    return targets.lam * base + (1 - targets.lam) * F.cross_entropy(student, targets.labels_mixed)
