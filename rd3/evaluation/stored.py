"""Stored soft labels: logits in the type and with the classes of a label file, and back to fp32 for training.

Training does this in memory, without a file; exported labels (:mod:`rd3.evaluation.label_files`) have the same values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from rd3.protocol import EvalProtocol

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
ABSENT = 1e6
"""Gap below the largest logit at which absent classes are put; exp(-gap / T) is exactly 0 in fp32 for T below 9,000."""


class StoredLabels(NamedTuple):
    """Soft labels as they are stored."""

    values: torch.Tensor
    """(B, C) logits, or the (B, k) largest ones, fp16 or fp32."""
    classes: torch.Tensor | None = None
    """(B, k) classes of ``values``, uint16 bit patterns in int16; None if the logits of all classes are stored."""


def stored(logits: torch.Tensor, protocol: EvalProtocol) -> StoredLabels:
    """The stored form of (B, C) float32 logits under the protocol's ``label_dtype`` and ``label_top_k``.

    Sources: fp16, VILA-Lab/SRe2L ``relabel/generate_soft_label.py``; the k largest logits, ranked in fp32, with 16-bit
    classes (``MR-k``), he-y/soft-label-pruning-quantization-for-dataset-distillation.
    """
    dtype = DTYPES[protocol.label_dtype]
    if protocol.label_top_k is None:
        return StoredLabels(logits.to(dtype))
    largest = logits.topk(protocol.label_top_k, dim=1)
    return StoredLabels(largest.values.to(dtype), largest.indices.to(torch.int16))


def restored(labels: StoredLabels, num_classes: int) -> torch.Tensor:
    """(B, ``num_classes``) float32 logits; classes that were not stored have probability 0 at every temperature."""
    values = labels.values.float()
    if labels.classes is None:
        return values
    absent = values.amax(dim=1, keepdim=True) - ABSENT
    return absent.repeat(1, num_classes).scatter_(1, labels.classes.long() & 0xFFFF, values)


def mixture(own: torch.Tensor, partner: torch.Tensor, lam: float, temperature: float) -> torch.Tensor:
    """(B, C) logits whose softmax at ``temperature`` is lam * softmax(own) + (1 - lam) * softmax(partner).

    Labels of images that CutMix or MixUp has mixed, from the stored logits of an image and of the image mixed into it.
    Source: szq0214/FKD ``FKD/utils_FKD.py``, where stored probabilities are at temperature 1.
    """
    first, second = (torch.log_softmax(each / temperature, dim=1) for each in (own, partner))
    log_lam, log_rest = (math.log(weight) if weight > 0 else -math.inf for weight in (lam, 1 - lam))
    return temperature * torch.logaddexp(first + log_lam, second + log_rest)
