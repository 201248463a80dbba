"""Kullback-Leibler divergence at a temperature: the loss of the RD3 protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd3.losses._base import LossTargets, register_loss
from rd3.protocol import EvalProtocol

if TYPE_CHECKING:
    import torch


@register_loss("kl", reads=("temperature", "scale_t2"))
def kl(student_logits: torch.Tensor, targets: LossTargets, protocol: EvalProtocol) -> torch.Tensor:
    """KL of teacher and student at one temperature, summed over classes, mean over images.

    Not multiplied by the squared temperature unless ``scale_t2`` says so, as in LINs-lab/RDED.
    """
    from torch.nn import functional as F

    student = F.log_softmax(student_logits.float() / protocol.temperature, dim=1)
    teacher = F.log_softmax(targets.teacher_logits.float() / protocol.temperature, dim=1)
    loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * protocol.temperature**2 if protocol.scale_t2 else loss
