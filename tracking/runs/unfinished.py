"""Periodic upload of unfinished work, so that another machine can resume it when this one is preempted.

The finished blocks of a synthetic set (groups of images), or the checkpoint of a training, are stored as files of the
recipe's MLflow run, under ``unfinished/``.  They are transferred like all files of a run, and deleted when the recipe
is done.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

from rd3.errors import RD3Error
from rd3.store import visible_files
from tracking.runs.artifacts import delete
from tracking.runs.runs import OpenRun

EVERY_S = 60.0
"""Seconds between uploads: at most this much work is lost with a machine, besides the current block or epoch."""
UNFINISHED = "unfinished"


class UnfinishedWork:
    """The files in a recipe's result folder on this machine; an upload that fails is retried with the next one."""

    def __init__(self, run: OpenRun, folder: Path, every_s: float = EVERY_S):
        self.run, self.folder, self.every_s = run, folder, every_s
        self._sent: dict[Path, float] = {}
        """Map of uploaded files, relative to ``folder``, to the modification times that they had."""
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def upload(self, *, leaving: bool = False) -> None:
        """Upload changed files if ``every_s`` seconds have passed or the process is ``leaving``; thread-safe."""
        if not leaving and time.monotonic() - self._last < self.every_s:
            return
        with self._lock, contextlib.suppress(RD3Error), self.run.tracker.errors():
            for name in visible_files(self.folder):  # hidden ones are still being written
                changed = (self.folder / name).stat().st_mtime
                if self._sent.get(name) != changed:
                    parent = Path(UNFINISHED, name).parent.as_posix()
                    self.run.tracker.client.log_artifact(self.run.run_id, str(self.folder / name), parent)
                    self._sent[name] = changed
        self._last = time.monotonic()

    def download(self) -> None:
        """Download uploaded files that are missing from the folder.  They are validated when they are opened.

        Raises :class:`rd3.errors.Unavailable` if the server is unreachable, as starting without the files would
        overwrite them.
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

    def discard(self) -> None:
        """Delete the uploaded files once the recipe is done; errors are ignored."""
        with contextlib.suppress(RD3Error), self.run.tracker.errors():
            if self.run.tracker.client.list_artifacts(self.run.run_id, UNFINISHED):
                delete(f"{self.run.artifact_uri}/{UNFINISHED}", self.run.tracker.place.tracking_uri)
