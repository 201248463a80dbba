"""What a loss is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rd3.protocol import EvalProtocol
from rd3.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LossTargets:
    """What the student should answer for one batch."""

    teacher_logits: torch.Tensor | None
    """(B, C) float32, of all teachers together (:mod:`rd3.hybrid`), of the very pixels that the student sees; None with
    hard labels."""
    labels: torch.Tensor
    """(B,) int64, of the base images."""
    labels_mixed: torch.Tensor
    """(B,) int64, of the images whose box was pasted in; equal to ``labels`` without CutMix."""
    lam: float
    """Share of the pixels that are the base image's own (0-1)."""


Loss = Callable[["torch.Tensor", LossTargets, EvalProtocol], "torch.Tensor"]
"""(student logits (B, C), targets, protocol) to a scalar in fp32; the docstring's first line is its summary."""

LOSSES: Registry[Loss] = Registry("loss", "rd3.losses")


def register_loss(name: str, *, reads: Collection[str] | None = None) -> Callable[[Loss], Loss]:
    """File a loss under a name, which is then a value of the protocol field ``loss``.

    ``reads`` names the fields of the protocol that change it; None where nobody says.  A sweep refuses to move others.
    """

    def file_it(loss: Loss) -> Loss:
        loss.reads = reads
        return LOSSES.register(name)(loss)

    return file_it
