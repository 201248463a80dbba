"""Rebuild a lost ledger from MLflow runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rd3.recipe import KINDS, key_of
from rd3.store import Entry, read_entry
from tracking.ledger.addresses import to_absolute
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs import artifacts
from tracking.runs.runs import Tracker

_ENTRY = "entry.json"


class Rebuilt(NamedTuple):
    """Result of rebuilding a ledger."""

    added: int
    """Number of entries added."""
    without_entry: list[str]
    """MLflow's ids of finished runs that have no ``entry.json``, which were skipped."""


def rebuild(ledger: Ledger, place: Place) -> Rebuilt:
    """Add an entry for every finished run on the server whose files still exist, of any ledger.

    A lost ledger has lost its identity, and may have been moved, so that its own runs cannot be told from others.
    Runs of an older format give entries of that format, which ``rd3 ledger upgrade`` converts.
    Raises :class:`DataCorrupt` for the first ``entry.json`` that cannot be read, with what to do.
    """
    tracker = Tracker(place)
    known = {kind: ledger.keys(kind) | ledger.former_keys(kind).keys() for kind in KINDS}
    added, without_entry = 0, list[str]()
    with tracker.errors():
        done = tracker.search(tracker.experiment_ids(), {"rd3.status": "done"}, "attributes.status = 'FINISHED'")
    for run in done:
        tags = run.data.tags
        if tags["rd3.key"] in known.get(tags["rd3.kind"], {tags["rd3.key"]}):
            continue  # it is in the ledger, or of a kind that this version does not have
        with tracker.errors(), tempfile.TemporaryDirectory() as scratch:
            if not any(file.path == _ENTRY for file in tracker.client.list_artifacts(run.info.run_id)):
                without_entry.append(run.info.run_id)
                continue
            copy = tracker.client.download_artifacts(run.info.run_id, _ENTRY, scratch)
            name = f"{_ENTRY} of run {run.info.run_id}"
            entry = _with_current_address(
                read_entry(Path(copy).read_bytes(), name, "delete that run in MLflow"), run, ledger
            )
        # An entry whose recipe does not match its key would corrupt every result that reuses it.
        if key_of(entry.recipe) == entry.key and artifacts.exists(entry, place.tracking_uri):
            ledger.add(entry)
            known[entry.kind].add(entry.key)
            added += 1
    return Rebuilt(added, without_entry)


def _with_current_address(entry: Entry, run: Any, ledger: Ledger) -> Entry:
    """The entry with the current address of its files.

    Files that are kept with the run are where MLflow says now; RD3 0.1 wrote absolute addresses, which may be old.
    Other addresses in ``entry.json`` are relative to the artifact root.
    """
    if (entry.artifact or "").endswith(f"/{run.info.run_id}/artifacts/{entry.kind}"):
        return entry.model_copy(update={"artifact": f"{run.info.artifact_uri}/{entry.kind}"})
    return to_absolute(entry, ledger.objects)
