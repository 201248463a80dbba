"""Tensors as bytes, and the sha256 of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rd3.lazy import torch


def value_bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor in row-major order, little-endian on the platforms that torch supports."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def sha256_of(parts: Iterable[str | torch.Tensor]) -> str:
    """sha256, in hexadecimal, of texts (as UTF-8) and of the values of tensors, one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else value_bytes(part))
    return state.hexdigest()
