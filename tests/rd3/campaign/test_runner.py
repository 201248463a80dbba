"""What a process that runs recipes does around them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_recipes import a_set

from rd3 import perform
from rd3.campaign.runner import Ended, Runner
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
