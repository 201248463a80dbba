"""The driver of a sweep, without Ray: outages that it sits out, and signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.commands.grid import expanded_grid
from pipelines.settings import Session
from pipelines.sweep.files import load_sweep
from pipelines.sweep.run import SweepRun
from pipelines.sweep.subject import subjects
from rd3.datasets import Roots
from rd3.errors import Away
from rd3.protocol import preset
from tracking.place import Place


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRun:
    """Four trials for one method."""
    monkeypatch.setattr("tracking.patience.time.sleep", lambda _s: None)
    here = Session(
        Roots(None, tmp_path), Place(f"sqlite:///{tmp_path / 'm.db'}", str(tmp_path / "artifacts"), tmp_path)
    )
    shipped = load_sweep("demo")
    asked = shipped.model_copy(update={"trials": 4, "methods": shipped.methods[:1]})

    def expand(grid, winners=None):
        return expanded_grid(grid, here, lambda name: (winners or {}).get(name) or preset(name))

    return SweepRun(asked, subjects(asked, expand, preset), here, expand)


class Outage:
    """Raises :class:`Away` so many times, then asks."""

    def __init__(self, ask, times: int):
        self.ask, self.times = ask, times

    def __call__(self, *arguments):
        if self.times:
            self.times -= 1
            raise Away("The store does not answer.")
        return self.ask(*arguments)


def test_the_ledger_may_be_away_for_a_while(sweep, monkeypatch):
    outage = Outage(sweep.ledger.find, 3)
    monkeypatch.setattr(sweep.ledger, "find", outage)
    assert sweep._given(sweep.subjects[0].evaluations({})) == []
    assert outage.times == 0


def test_the_tracking_server_may_be_away_when_the_runs_are_opened(sweep, monkeypatch):
    search, made = Outage(sweep.tracker.search, 2), Outage(sweep.tracker.experiment, 2)
    monkeypatch.setattr(sweep.tracker, "search", search)
    monkeypatch.setattr(sweep.tracker, "experiment", made)
    sweep._open()
    assert (search.times, made.times) == (0, 0)
    assert sweep.tracker.client.get_run(sweep.runs.run_id).info.status == "RUNNING"


def test_a_signal_ends_the_waiting_as_a_signal(sweep):
    sweep.interrupts.name = "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        sweep._patiently(Outage(lambda: None, 1))
