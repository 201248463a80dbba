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
