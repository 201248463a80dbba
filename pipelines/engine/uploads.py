"""Timing of uploads of unfinished work: at most once a minute while a worker works, and before its process ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rd3.perform import Progress

if TYPE_CHECKING:
    from tracking.runs.unfinished import UnfinishedWork

_in_progress: set[UnfinishedWork] = set()
"""Unfinished work of the recipes that this process is running."""


def upload_unfinished() -> None:
    """Upload completed work of the recipes in progress, as the process is about to end."""
    for unfinished in list(_in_progress):
        unfinished.upload(leaving=True)


@contextlib.contextmanager
def registered_for_upload(unfinished: UnfinishedWork | None) -> Iterator[None]:
    """While the block runs, :func:`upload_unfinished` uploads this work.

    A trial runs in a thread of its worker: a signal that ends the process does not leave the block.
    """
    work: set[UnfinishedWork] = set() if unfinished is None else {unfinished}
    _in_progress.update(work)
    try:
        yield
    finally:
        _in_progress.difference_update(work)


def uploading(progress: Progress, unfinished: UnfinishedWork) -> Progress:
    """Wrap ``progress`` so that a new note starts an upload, at most one a minute.

    Synthesis has one note per block and does not time what happens between blocks, so that no upload counts as
    generation time.
    """
    last = [""]

    def report(fraction: float, note: str) -> None:
        progress(fraction, note)
        if note != last[0]:
            last[0] = note
            unfinished.upload()

    return report
