"""Hybrid labels: the logits of several teachers combined into one set of logits for the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rd3.lazy import torch
from rd3.protocol import EvalProtocol


def combine_logits(logits: Sequence[torch.Tensor], protocol: EvalProtocol) -> torch.Tensor:
    """Combine each teacher's (B, C) float32 logits into (B, C), as the protocol's ``hybrid`` specifies.

    Sources: ``logits``, EDC's code; ``balanced``, G-VBSM's on ImageNet-1K (norms over the batch, or over the whole set
    with labels ``once``); ``softmax``, another reading of the paper's hybrid soft labels under a KL loss.
    """
    return _COMBINE[protocol.hybrid](logits, protocol.loss.settings.get("temperature", 1.0))


def _mean(logits: Sequence[torch.Tensor], _temperature: float) -> torch.Tensor:
    return sum(logits[1:], start=logits[0]) / len(logits)


def _balanced(logits: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """The mean after each teacher's logits are scaled to the mean of the teachers' Frobenius norms."""
    norms = [each.norm() for each in logits]
    common = sum(norms) / len(norms)
    return _mean([each * (common / norm) for each, norm in zip(logits, norms, strict=True)], temperature)


def _softmax(logits: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """Logits whose softmax at ``temperature`` is the mean of the teachers' softmaxes there."""
    logs = torch.stack([torch.log_softmax(each / temperature, dim=1) for each in logits])
    return temperature * (logs.logsumexp(dim=0) - math.log(len(logits)))


_COMBINE = {"logits": _mean, "balanced": _balanced, "softmax": _softmax}
