"""The log of trials: ``<home>/trials.jsonl``, append-only, one JSON object per line.

An attempt at a recipe writes ``start``, ``made`` when the result is on disk and only the upload remains, and then
``done`` or ``fail``; one that finds a finished result only uploads it, one at a share of a set writes nothing.  A
killed attempt writes nothing more, and if no other one follows, its driver writes ``fail``.  ``forgotten`` records that
the artifact of a finished recipe was damaged or missing.  Attempts are numbered by this log, and `rd3 status` shows its
events, but what runs again is decided by the ledger alone.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.settings import trial_log_path
from rd3.processes import started_at, still_runs


def append(home: Path, event: str, kind: str, key: str, **more: Any) -> None:
    """Append one line in a single write, so that lines of several processes do not mix (``O_APPEND``).

    After a line cut off by a full disk it starts on a new one; a line that is being written may look cut off as well,
    and is then followed by an empty one.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    where = {"pid": os.getpid(), "started": started_at(os.getpid()), "host": platform.node(), "time": time}
    line = {"event": event, "kind": kind, "key": key, **where, **more}
    home.mkdir(parents=True, exist_ok=True)
    handle = os.open(trial_log_path(home), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (cut_off * "\n" + json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def events(home: Path, key: str | None = None) -> Iterator[dict[str, Any]]:
    """All lines in order, or those of one key.  Skips lines that were cut off, and empty ones."""
    path = trial_log_path(home)
    if not path.is_file():
        return
    with open(path, "rb") as lines:
        for line in lines:
            if key is not None and key.encode() not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if key is None or event["key"] == key:
                yield event


def attempts(home: Path, key: str) -> int:
    """Number of times that a recipe was started here."""
    return sum(event["event"] == "start" for event in events(home, key))


def is_done(home: Path, key: str) -> bool:
    """Whether a recipe was finished here and not forgotten since."""
    done = False
    for event in events(home, key):
        done = event["event"] == "done" or (done and event["event"] != "forgotten")
    return done


def alive(event: dict[str, Any]) -> bool:
    """Whether the process that wrote a line still runs.  False for other machines, whose state is unknown."""
    return event["host"] == platform.node() and still_runs(event["pid"], event.get("started"))
