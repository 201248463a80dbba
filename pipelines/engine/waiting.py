"""Retries of a trial, whose progress shows what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rd3.perform import Progress
from tracking.ledger.retry import retry

T = TypeVar("T")


def retry_shown(ask: Callable[[], T], progress: Progress, fraction: float = 0.0) -> T:
    """Call a server with retries while it is unreachable; the progress shows what the recipe waits for."""
    return retry(ask, waiting=lambda reason: progress(fraction, f"waiting: {reason}"))
