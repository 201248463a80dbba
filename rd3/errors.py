"""Errors that a user can act on: one sentence of fact, then one fix.

All deliberate errors derive from :class:`RD3Error`; ``rd3`` prints the sentence and exits with ``exit_code``.  The
``status`` of the error that ended a recipe is in the log of trials and a tag of its MLflow run.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path


class RD3Error(Exception):
    """A mistake or an external problem that the user can fix.

    ``message`` states what was found, where, and what was expected; ``fix`` is one instruction.
    """

    status = "failed"
    exit_code = 2

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message, fix)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.fix}" if self.fix else self.message


class UnknownName(RD3Error):
    """A method, dataset, network, loss or field that does not exist."""


class BadValue(RD3Error):
    """A value of the wrong type, out of range, or contradicting another."""


class DataMissing(RD3Error):
    """Files of a dataset, a teacher or a set are missing."""


class FilesNotExported(DataMissing):
    """A result exists, but its files were not exported with it."""


class DataCorrupt(RD3Error):
    """Files are truncated, modified or have the wrong hash."""


class ClassOrderError(RD3Error):
    """Two objects that must share a class list do not."""


class Unsupported(RD3Error):
    """A combination that is not supported; tables print the reason as a footnote."""

    status = "unsupported"


class Diverged(RD3Error):
    """A loss became NaN or infinite."""

    status = "diverged"


class StoreError(RD3Error):
    """The ledger or the artifact store cannot be read or written, or another process has locked it."""


class LedgerInUse(StoreError):
    """Another driver works with this ledger."""

    exit_code = 5


class TrackingError(RD3Error):
    """The tracking server does not respond or is not the expected one."""


class Unavailable(RD3Error):
    """A remote service is temporarily unavailable; the request can be retried."""


class StoreUnavailable(Unavailable, StoreError):
    """The ledger or the artifact store is temporarily unavailable."""


class TrackingUnavailable(Unavailable, TrackingError):
    """The tracking server is temporarily unavailable."""


def why(error: BaseException) -> tuple[str, str]:
    """Status and reason of a raised error; the reason of an unexpected one includes the line that raised it."""
    if isinstance(error, RD3Error):
        return error.status, str(error)
    if isinstance(error, OSError) and is_disk_full(error):
        place = f" for {error.filename}" if error.filename else ""
        return "failed", f"No space left{place}. Fix: free space on that disk, or inodes if it has none left (`df -i`)"
    reason = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return "oom", reason
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "failed", f"{reason} ({Path(frame.filename).name}, line {frame.lineno})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the device ran out of memory."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    text = str(error)  # torch "can't allocate memory", the system "Cannot ..."; CUDA where others hold all of it
    return known or "allocate memory" in text or "CUDA error: out of memory" in text


def is_disk_full(error: OSError) -> bool:
    """Whether a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def is_device_error(error: BaseException) -> bool:
    """Whether this is a CUDA error, after which all later CUDA calls of the process fail as well."""
    text = str(error)
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "cuDNN error" in text


def ends_the_process(error: BaseException) -> bool:
    """Whether the error affects the whole process and leaves its memory or device in an unknown state."""
    return is_out_of_memory(error) or is_device_error(error)
