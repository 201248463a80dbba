"""Notice on a machine that is taken away."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psutil
import pytest

from pipelines.leave import leave


@pytest.fixture
def processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A trial, one that does not listen, and something else."""
    deaf = "trap '' TERM; echo deaf now; while :; do sleep 0.1; done"
    started = {
        "trial": subprocess.Popen(["ray::ImplicitFunc.train", "60"], executable="/bin/sleep"),
        "deaf": subprocess.Popen(
            ["ray::ImplicitFunc.train", "-c", deaf], executable="/bin/bash", stdout=subprocess.PIPE
        ),
        "other": subprocess.Popen(["/bin/sleep", "60"]),
    }
    assert started["deaf"].stdout.readline() == b"deaf now\n"
    yield started
    started["deaf"].stdout.close()
    for process in started.values():
        process.kill()
        process.wait()


def test_trials_are_told_and_nobody_else(processes, monkeypatch):
    ours = [psutil.Process(process.pid) for process in processes.values()]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(ours))
    assert leave(give_up_after_s=1.0) == 1, "the one that does not listen"
    assert processes["trial"].poll() is not None
    assert processes["other"].poll() is None
