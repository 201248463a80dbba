"""What a process that runs recipes does around them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from small_recipes import a_set

from rd3 import perform
from rd3.campaign.runner import Ended, Progressed, Runner
from rd3.campaign.view import View, named
from rd3.datasets import Roots
from rd3.errors import BadValue
from rd3.recipe import to_json


def test_device_memory_is_released_after_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    released: list[BaseException | None] = []
    ended: list[Ended] = []

    def fails(*_given, **_options):
        raise BadValue("it was told to")

    monkeypatch.setattr(perform, "perform", fails)
    monkeypatch.setattr(Runner, "_release_memory", lambda _runner: released.append(sys.exception()))
    runner = Runner(tmp_path / "store", Roots(None, tmp_path), tmp_path / "out")
    assert runner.run([to_json(a_set(0))], ended.append, lambda: False)
    assert [one.status for one in ended] == ["failed"]
    assert released == [None], "once, when the error holds no tensors any more"


def test_a_training_that_restarts_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def restarts(*_given, progress, **_options):
        for note in ("epoch 1", "restarting: checkpoint.safetensors is damaged", "epoch 1"):
            progress(0.0, note)
        raise BadValue("it was told to")

    events: list[Ended | Progressed] = []
    monkeypatch.setattr(perform, "perform", restarts)
    runner = Runner(tmp_path / "store", Roots(None, tmp_path), tmp_path / "out")
    runner.run([to_json(a_set(0))], events.append, lambda: False)
    notes = [event.note for event in events if isinstance(event, Progressed)]
    assert notes == ["epoch 1", "restarting: checkpoint.safetensors is damaged"], "the last within the interval"
    out = io.StringIO()
    for note in notes:
        View(out, 1).progress(a_set(0), 0.0, note, "0/1 done")
    assert out.getvalue() == f"{named(a_set(0))}: restarting: checkpoint.safetensors is damaged\n"
