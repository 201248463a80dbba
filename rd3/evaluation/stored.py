"""Stored soft labels: what a store on disk keeps of logits, and what training reads back."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from rd3.protocol import EvalProtocol

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
ABSENT = 1e6
"""Distance below the largest logit at which an exponential is exactly 0 in fp32 at any temperature below 9,000."""


class StoredLabels(NamedTuple):
    """Soft labels as they are stored."""

    values: torch.Tensor
    """(B, C) logits, or the (B, k) largest ones, fp16 or fp32."""
    classes: torch.Tensor | None = None
    """(B, k) int16 classes of ``values``, of which the bits are those of an unsigned number; None if all are stored."""


def stored(logits: torch.Tensor, protocol: EvalProtocol) -> StoredLabels:
    """What is stored of (B, C) float32 logits under ``label_dtype`` and ``label_top_k``.

    Sources: fp16, VILA-Lab/SRe2L ``relabel/generate_soft_label.py``; the k largest logits, ranked in fp32, with 16-bit
    classes (``MR-k``), he-y/soft-label-pruning-quantization-for-dataset-distillation.
    """
    dtype = DTYPES[protocol.label_dtype]
    if protocol.label_top_k is None:
        return StoredLabels(logits.to(dtype))
    largest = logits.topk(protocol.label_top_k, dim=1)
    return StoredLabels(largest.values.to(dtype), largest.indices.to(torch.int16))


def restored(labels: StoredLabels, classes: int) -> torch.Tensor:
    """(B, ``classes``) float32 logits; classes that were not stored have probability 0 at every temperature."""
    values = labels.values.float()
    if labels.classes is None:
        return values
    absent = values.amax(dim=1, keepdim=True) - ABSENT
    return absent.repeat(1, classes).scatter_(1, labels.classes.long() & 0xFFFF, values)


def mixture(base: torch.Tensor, mixed: torch.Tensor, share: float, temperature: float) -> torch.Tensor:
    """(B, C) logits whose softmax at ``temperature`` is ``share`` of that of ``base`` and the rest of ``mixed``.

    Labels of mixed images, as probabilities at the temperature of the loss.  Source: szq0214/FKD
    ``FKD/utils_FKD.py``, where stored probabilities are at temperature 1.
    """
    first, second = (torch.log_softmax(each / temperature, dim=1) for each in (base, mixed))
    own, other = (math.log(weight) if weight > 0 else -math.inf for weight in (share, 1 - share))
    return temperature * torch.logaddexp(first + own, second + other)
