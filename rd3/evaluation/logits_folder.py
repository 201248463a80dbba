"""The folder of cached teacher logits: a disk budget, one writer for each file, and the least recently used go first.

``<home>/logits/<views>-<rest>.logits`` are complete files: the beginning of the digest of all that decides the
augmented images and their teachers, and a digest of all else that decides bits.  Those being written end in ``.part``
and are locked by their writer, so that one that crashed leaves a file without a lock, which is never read.  The folder
is locked while a file is begun or ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from rd3.locks import exclusive, is_locked

SUFFIX, PART = ".logits", ".part"
VIEWS_DIGITS = 32
"""Digits of the former digest (``Views.key``) in the name of a file."""


class LogitsFolder:
    """Cached logits in the ``home`` of a machine.  All methods may raise :class:`OSError`."""

    def __init__(self, home: Path, budget_bytes: int = 0):
        self.path, self.budget_bytes = Path(home) / "logits", budget_bytes

    def open(self, name: str) -> BinaryIO | None:
        """A complete file to read, which then counts as used; None if there is none."""
        path = self.path / (name + SUFFIX)
        try:
            os.utime(path)
            return open(path, "rb")
        except FileNotFoundError:
            return None

    def begin(self, name: str, size: int) -> BinaryIO | None:
        """An empty file with ``size`` bytes reserved in the budget; end it with :meth:`complete` or :meth:`abandon`.

        None if it does not fit, is complete, or another process is writing it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._alone():
            part = self.path / (name + PART)
            if (self.path / (name + SUFFIX)).exists() or is_locked(part) or not self._make_room(size):
                return None
            stream = open(part, "w+b")  # noqa: SIM115  (its writer closes it)
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.truncate(size)
            return stream

    def complete(self, name: str, stream: BinaryIO) -> None:
        """Rename a file that was written to its end."""
        stream.flush()
        os.fsync(stream.fileno())
        with self._alone(), contextlib.closing(stream):
            os.replace(self.path / (name + PART), self.path / (name + SUFFIX))

    def abandon(self, name: str, stream: BinaryIO) -> None:
        """Delete a file that was not written to its end."""
        with self._alone(), contextlib.suppress(OSError), contextlib.closing(stream):  # a full disk fails once more
            (self.path / (name + PART)).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a complete file; those who are reading it can go on."""
        with self._alone():
            (self.path / (name + SUFFIX)).unlink(missing_ok=True)

    def discard(self, views: Iterable[str]) -> None:
        """Delete the files of views, by their keys, and those of writers that crashed."""
        wanted = {key[:VIEWS_DIGITS] for key in views}
        if not self.path.is_dir():
            return
        with self._alone():
            self._delete_files_of_crashed_writers()
            for path in self.path.glob(f"*-*{SUFFIX}"):
                if path.name.partition("-")[0] in wanted:
                    path.unlink()

    def _delete_files_of_crashed_writers(self) -> None:
        for path in self.path.glob(f"*{PART}"):
            if not is_locked(path):
                path.unlink()

    def _make_room(self, size: int) -> bool:
        """Whether ``size`` bytes fit into the budget, after the least recently used files are deleted if need be."""
        self._delete_files_of_crashed_writers()
        written = sum(path.stat().st_size for path in self.path.glob(f"*{PART}"))
        complete = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.path.glob(f"*{SUFFIX}")]
        left = self.budget_bytes - written - size
        if left < 0:
            return False
        for _used, taken, path in sorted(complete, reverse=True):
            left -= taken
            if left < 0:
                path.unlink()
        return shutil.disk_usage(self.path).free > size

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self.path / "lock")
