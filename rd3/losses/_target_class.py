"""Distributions split into the target class and the others, for the losses that treat them differently."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def target_and_rest(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, 2) logarithms of the probabilities of the target class and of all others, from log-probabilities (B, C)."""
    target = labels[:, None]
    rest = log_p.scatter(1, target, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p.gather(1, target), rest], dim=1)


def among_the_rest(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, C - 1) log-probabilities of the classes other than the target, renormalised, from logits (B, C)."""
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], value=False)
    # A stable sort keeps the order of classes; indexing by a mask would wait for the device to learn the size.
    kept = others.byte().sort(dim=1, descending=True, stable=True).indices[:, :-1]
    return F.log_softmax(logits.gather(1, kept), dim=1)
