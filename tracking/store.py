"""The store that trials and commands use: the ledger records results, artifacts hold files, MLflow displays both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rd3.errors import RD3Error
from rd3.recipe import read_recipe
from rd3.store import Entry, existing
from tracking.ledger.identity import identity
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs import artifacts
from tracking.runs.fields import Fact, input_set, note, origin, span_ms
from tracking.runs.runs import Tracker
from tracking.runs.students import record_student, upload_student

EXPERIMENT = "rd3"
"""Name of the MLflow experiment of all runs: of grids, of single recipes and of imports."""


class TrackedStore:
    """A :class:`rd3.store.ReadableStore` that is also written to, for one :class:`Place`."""

    def __init__(self, place: Place):
        self.place = place
        self.ledger = Ledger(place.artifacts)

    @property
    def cache(self) -> Path:
        return self.place.home / "cache"

    def find(self, kind: str, key: str) -> Entry | None:
        return self.ledger.find(kind, key)

    def exists(self, entry: Entry) -> bool:
        """Whether files with the names of the entry's files exist; contents are not read."""
        return artifacts.exists(entry, self.place.tracking_uri)

    def fetch(self, kind: str, key: str) -> Path:
        return artifacts.fetch(existing(self, kind, key), self.cache, self.place.tracking_uri)

    def put(self, entry: Entry, folder: Path, facts: dict[str, Fact] | None = None, *, source: str = "") -> Entry:
        """Log the files to an MLflow run, then write the ledger entry, and return that entry.

        An existing entry that has files is returned unchanged.  ``source``: where a result that was computed elsewhere
        comes from; its run says so, and has the times of the computation.
        """
        known = self.find(entry.kind, entry.key)
        if known is not None and known.artifact:
            return known
        ledger_id = self.place.ledger_id or identity(self.ledger.objects, create=True)
        tracker = Tracker(replace(self.place, ledger_id=ledger_id))
        experiment_id = tracker.experiment(EXPERIMENT)
        recipe = read_recipe(entry.recipe)
        start, end = (span_ms(entry) if source else None) or (None, None)
        run = tracker.begin(recipe, facts or {}, experiment_id=experiment_id, start_ms=start)
        try:
            kept = run.finish(
                entry,
                folder,
                input_set=input_set(recipe, self.find),
                note=note(recipe, self.find, origin(entry, source) if source else ""),
                end_ms=end,
                tags={"rd3.imported": source} if source else None,
            )
        except BaseException as error:
            with contextlib.suppress(RD3Error):  # the first error is the one to report
                run.fail("failed", str(error))
            raise
        if known is not None:
            self.ledger.forget(entry.kind, entry.key)
        return self.ledger.add(kept)

    def add_student(self, again: Entry, folder: Path) -> Entry:
        """Add the student of ``again``, a repetition with files in ``folder``, to the ledger's entry without one.

        Raises :class:`rd3.kept_students.OtherResult` if the results differ.
        """
        recorded = existing(self, again.kind, again.key)
        entry = upload_student(recorded, again, folder, self.cache, self.place.tracking_uri)
        return record_student(self.ledger, Tracker(self.place), entry)

    def add_without_files(self, entry: Entry) -> Entry:
        """Record an entry whose files are not available: it gets no run, and a plan treats its recipe as missing."""
        return self.ledger.add(entry.model_copy(update={"artifact": None, "run_id": None}))


class GivenStore:
    """Read-only store of a trial: entries that the driver has sent, and files from the addresses in them.

    It does not access the ledger, so a trial needs no S3 credentials where a tracking server serves the files.  Files
    are verified once, because several recipes of a trial can share a parent.
    """

    def __init__(self, place: Place, entries: Iterable[Entry]):
        self.place = place
        self._entries = {(entry.kind, entry.key): entry for entry in entries}
        self._fetched: dict[tuple[str, str], Path] = {}

    def find(self, kind: str, key: str) -> Entry | None:
        return self._entries.get((kind, key))

    def fetch(self, kind: str, key: str) -> Path:
        if (kind, key) not in self._fetched:
            entry = existing(self, kind, key)
            self._fetched[kind, key] = artifacts.fetch(entry, self.place.home / "cache", self.place.tracking_uri)
        return self._fetched[kind, key]
