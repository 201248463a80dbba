"""Blocks of a synthetic set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Images generated together, independently of all others: the unit of resuming, progress and of shares.

    ``members`` are (label, k): image number ``k`` of class ``label``, 0 <= k < ipc.
    """

    index: int
    members: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> list[int]:
        return [label for label, _k in self.members]

    def rows(self, num_classes: int) -> list[int]:
        """Rows of its images in a set of this many classes, k-major: ``k * num_classes + label``."""
        return [k * num_classes + label for label, k in self.members]
