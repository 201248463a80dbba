"""Soft labels that a synthetic set comes with: one for each image, as logits or as probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rd3.lazy import torch
from rd3.tensor_bytes import sha256_of
from rd3.values import canonical

SoftLabelKind = Literal["logits", "probabilities"]
KINDS: tuple[SoftLabelKind, ...] = ("logits", "probabilities")
DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Types of soft labels, which are kept as they are given."""


@dataclass(frozen=True)
class SoftLabels:
    """One soft label for each image of a set, in its row order."""

    values: torch.Tensor
    """(N, C) of a type in :data:`DTYPES`, columns in the dataset's class order."""
    kind: SoftLabelKind

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    @property
    def dtype(self) -> str:
        """Name of the type, without ``torch.``."""
        return str(self.values.dtype).removeprefix("torch.")

    def take(self, rows: torch.Tensor | slice) -> SoftLabels:
        """The labels of some images, in the order of ``rows``."""
        return SoftLabels(self.values[rows].contiguous(), self.kind)

    def digest(self) -> str:
        """sha256 of kind, type, shape and values."""
        head = canonical({"kind": self.kind, "dtype": self.dtype, "shape": list(self.values.shape)})
        return sha256_of([head, self.values])
