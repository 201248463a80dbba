"""Comparison of ledger entries with the digests in their MLflow runs, which are written when a recipe finishes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rd3.errors import DataCorrupt
from rd3.kept_students import without_student
from rd3.store import Entry
from tracking.runs.runs import DIGEST, Tracker


def tagged_digests(tracker: Tracker) -> dict[str, str]:
    """Map each run of the tracker's ledger that has a digest to it; takes one search."""
    return digests_of(tracker.own_runs(f"tags.`{DIGEST}` LIKE '%'"))


def digests_of(runs: Iterable[Any]) -> dict[str, str]:
    """Map the ids of those MLflow runs that have a digest to it."""
    return {run.info.run_id: run.data.tags[DIGEST] for run in runs if DIGEST in run.data.tags}


def missing_runs(tracker: Tracker, run_ids: Iterable[str]) -> int:
    """How many of these runs are not in this MLflow: deleted, or newer than a database restored from a backup.

    Runs of any ledger count, as those of a home that was moved or copied have its address before.
    """
    wanted = set(run_ids)
    if not wanted:
        return 0
    with tracker.errors():
        found = tracker.search(tracker.experiment_ids(), {}, "tags.`rd3.key` LIKE '%'", of_any_ledger=True)
    return len(wanted - {run.info.run_id for run in found})


def compare(entry: Entry, tagged: Mapping[str, str]) -> None:
    """Raise :class:`DataCorrupt` if the entry's run has another digest.

    Passes without a digest to compare with: the run has none, or there is no run (deleted, or not of this server).  An
    evaluation to which a student was added may have a run with the digest from before.
    """
    expected = tagged.get(entry.run_id or "")
    if expected not in (None, entry.sealed().digest, without_student(entry).digest):
        raise DataCorrupt(
            f"The entry of {entry.kind} {entry.key[:12]} and its MLflow run {entry.run_id} have different digests: one "
            "of them was changed after the recipe finished.",
            "`rd3 artifacts verify --forget` removes such entries; the next run computes them again",
        )
