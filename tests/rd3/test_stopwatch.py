"""Time of a computation with its earlier attempts."""

from __future__ import annotations

import time

import pytest

from rd3.stopwatch import Stopwatch


def test_earlier_attempts_are_added(monkeypatch: pytest.MonkeyPatch):
    clocks = {"perf_counter": 100.0, "process_time": 7.0}
    for name in clocks:
        monkeypatch.setattr(time, name, lambda name=name: clocks[name])
    stopwatch = Stopwatch()
    clocks |= {"perf_counter": 112.0, "process_time": 10.0}
    assert stopwatch.spent() == {"wall_s": 12.0, "process_s": 3.0}
    stopwatch.include(30.0, 20.0)
    assert stopwatch.spent() == {"wall_s": 42.0, "process_s": 23.0}
