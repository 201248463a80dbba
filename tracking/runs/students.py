"""Students that are added to evaluations in the ledger, in steps between which a process may die.

The file is uploaded beside the recorded ones, then the ledger entry is replaced, then the run gets the new entry and
its digest.  After each step the entry passes its checks: a file that no entry names is ignored, and the digest of the
entry without its student counts as that of its run (:func:`tracking.runs.digests.compare`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from rd3.errors import RD3Error
from rd3.kept_students import with_student
from rd3.store import STUDENT, Entry
from tracking.ledger.ledger import Ledger
from tracking.runs import artifacts

if TYPE_CHECKING:
    from tracking.runs.runs import Tracker


def upload_student(recorded: Entry, again: Entry, folder: Path, cache: Path, tracking_uri: str = "") -> Entry:
    """Upload the student of ``again`` (a repetition whose files are in ``folder``); returns the recorded entry with it.

    Idempotent.  Raises :class:`rd3.kept_students.OtherResult`, and uploads nothing, if the results differ.
    """
    entry = with_student(recorded, again, artifacts.fetch(recorded, cache, tracking_uri), folder)
    artifacts.add(entry, folder / STUDENT, tracking_uri)
    return entry


def record_student(ledger: Ledger, tracker: Tracker, entry: Entry) -> Entry:
    """Put the recorded entry with its student into the ledger and show it in its run; returns it.

    A failing tracking server changes nothing: the run then shows the entry without its student.
    """
    kept = ledger.replace(entry)
    if kept.run_id:
        with contextlib.suppress(RD3Error):
            tracker.log_entry(kept)
    return kept
