"""Waiting for a condition on real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def wait_for(what: Callable[[], Any], deadline_s: float) -> Any:
    """What ``what`` returns once that is true; fails when the deadline passes."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {deadline_s:.0f} s in vain")
