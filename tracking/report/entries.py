"""The ledger entries behind a grid's cells, read in bulk and compared with MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rd3.cell import Cell
from rd3.recipe import Key
from rd3.store import Entry
from tracking.ledger.ledger import Ledger
from tracking.runs.digests import compare, digests_of, missing_runs
from tracking.runs.garbage import without_collection
from tracking.runs.runs import Tracker


@dataclass(frozen=True)
class GridEntries:
    """Entries of evaluations, their sets and teachers, and the robustness of their students."""

    _found: dict[tuple[str, Key], Entry] = field(default_factory=dict)
    """By (kind, key)."""
    runs: list[Any] = field(default_factory=list)
    """The MLflow runs of the ledger, once :meth:`compare` has searched for them: for a large grid that takes long."""

    @classmethod
    @without_collection()
    def of(cls, cells: Sequence[Cell], ledger: Ledger) -> Self:
        """Read the entries of a grid's cells, one kind at a time."""
        entries = cls()
        for kind in ("evaluation", "set", "robustness"):
            entries._read(ledger, kind, (getattr(cell, kind) for cell in cells))
        teacher_keys = (key for entry in list(entries._found.values()) for key in entry.recipe.get("teachers", ()))
        entries._read(ledger, "teacher", teacher_keys)
        return entries

    def _read(self, ledger: Ledger, kind: str, keys: Iterable[Key | None]) -> None:
        wanted = dict.fromkeys(key for key in keys if key is not None)
        self._found.update({(kind, key): entry for key, entry in ledger.find_many(kind, wanted).items()})

    def find(self, kind: str, key: Key) -> Entry | None:
        """The entry as it was read, or None."""
        return self._found.get((kind, key))

    def compare(self, tracker: Tracker) -> int:
        """Raise :class:`DataCorrupt` for the first entry whose digest differs from that of its MLflow run.

        Entries without a digest or a run pass; returns the number of runs that MLflow does not have.  Raises
        :class:`TrackingError` if the tracking server does not respond.
        """
        if not any(entry.run_id for entry in self._found.values()):
            return 0
        tracker.check()
        self.runs[:] = tracker.own_runs()
        tagged = digests_of(self.runs)
        for entry in self._found.values():
            compare(entry, tagged)
        return missing_runs(tracker, {entry.run_id for entry in self._found.values() if entry.run_id} - tagged.keys())
