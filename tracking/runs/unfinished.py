"""Unfinished work that leaves the machine now and then, so that another one goes on when this one is taken away.

Finished blocks of a set, a teacher's checkpoint: files of the recipe's own run under ``unfinished/``, sent and fetched
the way all its files are, and removed when the recipe is done.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

from rd3.errors import RD3Error
from tracking.runs.artifacts import delete
from tracking.runs.runs import OpenRun

EVERY_S = 60.0
"""How much work a machine that vanishes takes with it, at most, beside the block or epoch that was being made."""
UNFINISHED = "unfinished"


class UnfinishedWork:
    """Carries the files below one folder.  A server that does not answer is asked again the next time."""

    def __init__(self, run: OpenRun, folder: Path, every_s: float = EVERY_S):
        self.run, self.folder, self.every_s = run, folder, every_s
        self._sent: dict[str, float] = {}
        self._last = time.monotonic()
        self._one_at_a_time = threading.Lock()

    def _files(self) -> dict[str, float]:
        """Relative name to time of change; what is being written has a name with a dot in front."""
        found = ((path, path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return {
            name.as_posix(): path.stat().st_mtime
            for path, name in found
            if not any(part.startswith(".") for part in name.parts)
        }

    def carry(self, *, leaving: bool = False) -> None:
        """Send what has changed, if it is time, or if there will be no other: any thread of the process may say so."""
        if not leaving and time.monotonic() - self._last < self.every_s:
            return
        with self._one_at_a_time, contextlib.suppress(RD3Error), self.run.tracker.errors():
            for name, changed in self._files().items():
                if self._sent.get(name) != changed:
                    parent = Path(UNFINISHED, name).parent.as_posix()
                    self.run.tracker.client.log_artifact(self.run.run_id, str(self.folder / name), parent)
                    self._sent[name] = changed
        self._last = time.monotonic()

    def fetch(self) -> None:
        """Bring what another machine had sent and this one lacks.  Whoever opens a file checks it.

        Raises :class:`rd3.errors.Away`: going on without it would overwrite what was sent.
        """
        client, run_id = self.run.tracker.client, self.run.run_id
        with self.run.tracker.errors():
            if not client.list_artifacts(run_id, UNFINISHED):
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".fetch-") as scratch:
                found = Path(client.download_artifacts(run_id, UNFINISHED, scratch))
                for path in [path for path in found.rglob("*") if path.is_file()]:
                    target = self.folder / path.relative_to(found)
                    if not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        os.replace(path, target)

    def drop(self) -> None:
        """The recipe is done."""
        with contextlib.suppress(RD3Error), self.run.tracker.errors():
            if self.run.tracker.client.list_artifacts(self.run.run_id, UNFINISHED):
                delete(f"{self.run.artifact_uri}/{UNFINISHED}", self.run.tracker.place.tracking_uri)
