"""Add the student of an evaluation that ran again to the entry that was recorded without it.

The recorded result, its provenance and its files stay byte for byte; the entry gains the file of the student alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rd3.errors import RD3Error
from rd3.store import STUDENT, Entry, FolderStore, existing, write_atomically

ROUNDING = 1e-6
"""Relative difference of two final losses that only the order of a sum explains."""


class OtherResult(RD3Error):
    """An evaluation that ran again has another result than the recorded one."""


def without_student(entry: Entry) -> Entry:
    """The entry without the file of its student, sealed (with a new digest)."""
    files = {name: sha256 for name, sha256 in entry.files.items() if name != STUDENT}
    return entry.model_copy(update={"files": files}).sealed()


def adds_student(entry: Entry, recorded: Entry) -> bool:
    """Whether an entry is the recorded one with the file of its student, at the same address."""
    if STUDENT not in entry.files or STUDENT in recorded.files or entry.artifact != recorded.artifact:
        return False
    return without_student(entry).digest == recorded.sealed().digest


def with_student(recorded: Entry, again: Entry, recorded_folder: Path, folder: Path) -> Entry:
    """The recorded entry with the student of ``again``, sealed; their files are in the two folders.

    Raises :class:`OtherResult` if the results differ: weights are kept only with the result that they gave.
    """
    difference = differing_figure(recorded.result, again.result)
    if not difference and _by_class(recorded_folder) not in (None, _by_class(folder)):
        difference = "other numbers of correct predictions by class"
    if difference:
        raise OtherResult(
            f"Evaluation {again.key[:12]} ran again to keep its student and has {difference}; the recorded result "
            "stays, without weights.",
            f"run it on the kind of machine that recorded it, or delete by-key/evaluation/{again.key}.json in the "
            "ledger or store to replace the recorded result",
        )
    return recorded.model_copy(update={"files": {**recorded.files, STUDENT: again.files[STUDENT]}}).sealed()


def differing_figure(recorded: dict[str, Any], again: dict[str, Any]) -> str:
    """How two results of an evaluation differ, as ``87 correct predictions instead of 86``; empty if they do not."""
    for name, what in (("tested", "tested images"), ("correct", "correct predictions")):
        before, now = recorded.get(name), again.get(name)
        if before != now:
            return f"{now} {what} instead of {before}"
    before, now = recorded.get("final_loss"), again.get("final_loss")
    if before is not None and (now is None or not math.isclose(before, now, rel_tol=ROUNDING)):
        return f"a final loss of {now} instead of {before}"
    return ""


def _by_class(folder: Path) -> list[int] | None:
    """Correct predictions by class from the ``result.json`` of an evaluation; None if it has none."""
    path = folder / "result.json"
    counts: list[int] | None = json.loads(path.read_bytes()).get("per_class_correct") if path.is_file() else None
    return counts


def add_student(store: FolderStore, again: Entry, folder: Path) -> Entry:
    """Add the student of ``again``, with files in ``folder``, to the store's entry; raises as :func:`with_student`."""
    recorded, target = existing(store, again.kind, again.key), store.fetch(again.kind, again.key)
    entry = with_student(recorded, again, target, folder)
    write_atomically(target / STUDENT, (folder / STUDENT).read_bytes())
    return store.replace(entry)
