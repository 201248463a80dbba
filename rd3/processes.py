"""Processes of this machine: their standard streams, and limits that keep libraries from working."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rd3.errors import RD3Error, StoreError


@contextlib.contextmanager
def machine_limits_as_errors() -> Iterator[None]:
    """Convert what a machine's limits do to libraries to a sentence: no folder for temporary files, too little memory.

    Raises :class:`StoreError` for the first (:mod:`tempfile`, also while libraries are imported), :class:`RD3Error` for
    shared objects that do not fit into the address space.
    """
    try:
        yield
    except ImportError as error:
        library, marker, _after = str(error).partition(": failed to map segment")
        if not marker:
            raise
        raise RD3Error(
            f"{library} cannot be loaded: this process may not use enough memory.",
            "raise its limit (ulimit -v, or the memory that the job asks for)",
        ) from None
    except FileNotFoundError as error:
        _before, marker, tried = str(error).partition("No usable temporary directory found in ")
        if not marker:
            raise
        raise StoreError(
            f"Temporary files cannot be written: each of {tried} is missing, full or not writable.",
            "free space there, or set TMPDIR to a folder that can be written",
        ) from None


def open_standard_streams() -> None:
    """Open what a caller has closed of stdin, stdout and stderr (``>&-``, cron), to nowhere.

    Otherwise Python has None in their place, and the next file that is opened would receive what libraries print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def stat_of(process: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on; none if the process has ended, or where there is no /proc."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def started_at(process: int) -> str | None:
    """Start of a process in clock ticks since boot, which tells it from a later one with its ID; None if unknown."""
    fields = stat_of(process)
    return fields[19] if fields else None


def still_runs(process: int, started: str | None) -> bool:
    """Whether the process with this ID and :func:`started_at` runs; a zombie has ended.  ``started`` may be unknown."""
    if not is_running(process):
        return False
    fields = stat_of(process)
    return not fields or (fields[0] != "Z" and started in (None, fields[19]))


def is_suspended(process: int) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP, Ctrl-Z) or a debugger, until it is continued."""
    return stat_of(process)[:1] in (["T"], ["t"])


def is_running(process: int) -> bool:
    """Whether there is a process with this ID, of any user; it may be a zombie, or a later one with the same ID."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
