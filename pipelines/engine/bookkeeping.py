"""The driver's view of the ledger: entries that it has read, and writes under its lease.

Only the driver writes the ledger, from reports of trials, so that orphaned workers cannot do harm.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from pipelines.engine import trial_log
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import work_folder
from pipelines.engine.progress import View
from pipelines.engine.shards import delete_blocks
from pipelines.settings import Session
from rd3.errors import DataCorrupt, DataMissing
from rd3.kept_students import adds_student
from rd3.recipe import Key, read_recipe
from rd3.store import STUDENT, Entry
from tracking.ledger.lease import Lease
from tracking.ledger.retry import retry
from tracking.runs import artifacts
from tracking.runs.runs import Tracker
from tracking.runs.students import record_student

T = TypeVar("T")


class Bookkeeping:
    """Reads and writes ledger entries, with retries while the store is unreachable; a signal ends the retries."""

    def __init__(self, session: Session, lease: Lease, interrupts: Interrupts):
        self.session, self.home = session, session.home
        self.ledger = session.ledger
        self.view: View | None = None
        """Shows what the driver waits for."""
        self.removed: set[Key] = set()
        """Keys of results that were removed, as files are missing or damaged; they are generated from scratch."""
        self.finished: list[str] = []
        """``kind/key`` of the entries that this driver has added to the ledger."""
        self._lease, self._interrupts = lease, interrupts
        self._known: dict[Key, Entry] = {}
        self.tracker = Tracker(session)

    def entries(self, wanted: Iterable[tuple[str, Key]]) -> dict[Key, Entry]:
        """Ledger entries of these and of all their ancestors, ancestors first."""
        found: dict[Key, Entry] = {}
        for kind, key in wanted:
            entry = self._entry(kind, key)
            if entry is not None:
                found |= self.entries(read_recipe(entry.recipe).parents()) | {key: entry}
        return found

    def _entry(self, kind: str, key: Key) -> Entry | None:
        """An entry, read from the ledger once."""
        if key not in self._known and (entry := self.retry(partial(self.ledger.find, kind, key))) is not None:
            self._known[key] = entry
        return self._known.get(key)

    def recorded(self, key: Key) -> Entry | None:
        """The entry in the ledger of an evaluation that was stored without its student; None for others."""
        entry = self._entry("evaluation", key)
        return None if entry is None or STUDENT in entry.files else entry

    def keep(self, entry: dict[str, Any]) -> None:
        """Add a finished recipe to the ledger, unless it has an entry there, then delete its scratch.

        The entry of an evaluation is replaced by the same one with the file of its student.
        """
        made = Entry.model_validate(entry)
        recorded = self.recorded(made.key) if made.kind == "evaluation" else None
        if recorded is not None and adds_student(made, recorded):
            kept = self._write(partial(record_student, self.ledger, self.tracker, made))
        else:
            kept = self._write(partial(self.ledger.add, made))
        self._known[kept.key] = kept
        self.removed.discard(kept.key)
        self.finished.append(f"{kept.kind}/{kept.key}")
        shutil.rmtree(work_folder(self.home, kept.kind, kept.key), ignore_errors=True)

    def discard_blocks(self, key: Key) -> None:
        """Delete the uploaded blocks of a set that was generated in shares, and the scratch of these."""
        self.retry(partial(delete_blocks, self.ledger.objects, key))
        for folder in work_folder(self.home, "share", key).parent.glob(f"{key}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def damaged(self, kind: str, key: Key) -> bool:
        """Whether a result is missing, or damaged where it is stored; reads all its files, none from a cache."""
        entry = self._entry(kind, key)
        if entry is None:
            return True
        self._show(f"verifying {kind} {key[:12]} at its source")
        uri, scratch = self.session.tracking_uri, self.home / "cache"  # remote files are downloaded into it anew
        try:
            self.retry(partial(artifacts.check_source, entry, scratch, uri))
        except (DataMissing, DataCorrupt):
            return True
        return False

    def forget(self, kind: str, key: Key) -> None:
        """Remove a result with a missing or damaged artifact from the ledger."""
        self._write(partial(self.ledger.forget, kind, key))
        self._known.pop(key, None)
        self.finished = [name for name in self.finished if name != f"{kind}/{key}"]
        self.removed.add(key)
        shutil.rmtree(work_folder(self.home, kind, key), ignore_errors=True)
        trial_log.append(self.home, "forgotten", kind, key)

    def log_failure(self, kind: str, key: Key, status: str, reason: str) -> None:
        """Write to the log of trials how a recipe ended whose process could not write it."""
        trial_log.append(self.home, "fail", kind, key, status=status, reason=reason)

    def retry(self, ask: Callable[[], T]) -> T:
        """Call a store or server, with retries while it is unreachable."""
        try:
            return retry(ask, waiting=self._show, leaving=lambda: bool(self._interrupts.name))
        finally:
            self._show("")

    def _show(self, note: str) -> None:
        if self.view is not None:
            self.view.show_note(note)

    def _write(self, write: Callable[[], T]) -> T:
        """Write to the ledger, if the lease is still ours."""

        def as_holder() -> T:
            self._lease.check()
            return write()

        return self.retry(as_holder)
