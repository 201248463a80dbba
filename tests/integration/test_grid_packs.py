"""Grids on a real Ray whose evaluations share views: trained in packs, with the results of recipes made alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.cluster import ray as cluster
from pipelines.engine import trial_log, tune
from pipelines.engine.execute import Outcome
from rd3.perform import perform
from rd3.recipe import EvaluationRecipe
from tracking.ledger.ledger import Ledger
from tracking.store import TrackedStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]

TIMES = ("wall_s", "process_s", "peak_mib")
RATES = 4


class Grids:
    """Grids of one teacher, one set and evaluations of equal views, in one home; each has epochs of its own."""

    def __init__(self, tiny: ModuleType, home: Path):
        self.tiny, self.home, self.session = tiny, home, tiny.session_in(home)

    def recipes(self, epochs: int, rates: int = RATES) -> list[EvaluationRecipe]:
        expansion = self.tiny.tiny(self.session, evaluations=1, sets=1, rates=rates, epochs=epochs)
        return [recipe for recipe in expansion.recipes.values() if recipe.kind == "evaluation"]

    def run(self, epochs: int, rates: int = RATES) -> Outcome:
        return self.tiny.run(self.home, evaluations=1, sets=1, rates=rates, epochs=epochs)

    def packs(self, epochs: int) -> list[int]:
        """What the entries say of how many were made together."""
        ledger = Ledger(self.session.artifacts)
        return [ledger.find("evaluation", one.key).made.get("pack", 1) for one in self.recipes(epochs)]

    def events(self, epochs: int) -> list[dict[str, Any]]:
        return [event for one in self.recipes(epochs) for event in trial_log.events(self.home, one.key)]

    def check_as_alone(self, epochs: int) -> None:
        """Every entry is, but for its times, to the bit what the recipe gives in a process of one thread, alone."""
        import torch

        store, threads = TrackedStore(self.session), torch.get_num_threads()
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        try:
            for recipe in self.recipes(epochs):
                alone = perform(recipe, store, self.session.roots, self.home / "alone" / recipe.key)
                entry = store.find("evaluation", recipe.key)
                figures = [{k: v for k, v in one.result.items() if k not in TIMES} for one in (entry, alone)]
                assert figures[0] == figures[1]
                assert entry.files["curve.parquet"] == alone.files["curve.parquet"]
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def grids(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grids]:
    home = tmp_path_factory.mktemp("packs")
    with cluster.ray_cluster():
        tiny.run(home, evaluations=0, sets=1)
        yield Grids(tiny, home)


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cores there are: packs are as large as they can be."""
    monkeypatch.setattr("pipelines.engine.workers.RayWorkers.devices", lambda _self: (1.0, 0.0))


def test_evaluations_of_equal_views_are_made_together_and_are_what_they_are_alone(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
):
    outcome = grids.run(2)
    assert (outcome.exit_code, len(outcome.done)) == (0, RATES)
    assert grids.packs(2) == [RATES] * RATES
    assert Counter(event["event"] for event in grids.events(2)) == {"start": RATES, "made": RATES, "done": RATES}
    assert len({event["pid"] for event in grids.events(2)}) == 1
    grids.check_as_alone(2)


def test_a_worker_that_is_killed_in_mid_pack(grids: Grids, monkeypatch: pytest.MonkeyPatch):
    """Its recipes are made one by one, and give what they give in peace."""
    epochs, killed = 40, []

    def kill() -> None:
        started = _awaited(lambda: [event for event in grids.events(epochs) if event["event"] == "start"][RATES - 1 :])
        time.sleep(1.0)  # in mid-training
        if trial_log.is_done(grids.home, started[0]["key"]):
            return
        killed.append(started[0]["pid"])
        os.kill(started[0]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = grids.run(epochs)
    killer.join()
    assert killed and outcome.exit_code == 0
    assert grids.packs(epochs) == [1] * RATES
    assert Counter(event["event"] for event in grids.events(epochs)) == {
        "start": 2 * RATES, "made": RATES, "done": RATES
    }  # fmt: skip
    assert killed[0] not in {event["pid"] for event in grids.events(epochs) if event["event"] == "done"}
    grids.check_as_alone(epochs)


def test_a_pack_that_runs_out_of_memory_is_made_one_by_one_in_another_process(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
):
    def without_room(config: dict[str, Any]) -> None:
        import torch

        from pipelines.engine import attempt
        from pipelines.engine.trial import run_trial

        def full(*_pack: Any, **_options: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        attempt.perform_pack = full
        run_trial(config)

    monkeypatch.setattr(tune, "run_trial", without_room)
    assert grids.run(3).exit_code == 0
    assert grids.packs(3) == [1] * RATES
    started = {(one["attempt"], one["pid"]) for one in grids.events(3) if one["event"] == "start"}
    done = {(one["attempt"], one["pid"]) for one in grids.events(3) if one["event"] == "done"}
    [unfit] = {pid for number, pid in started if number == 1}
    assert {number for number, _pid in done} == {2} and unfit not in {pid for _number, pid in done}
    grids.check_as_alone(3)


def test_a_device_that_fails_for_good_is_said_after_a_few_processes(grids: Grids, monkeypatch: pytest.MonkeyPatch):
    def broken(config: dict[str, Any]) -> None:
        from pipelines.engine import attempt
        from pipelines.engine.trial import run_trial

        def fails(*_recipes: Any, **_options: Any) -> None:
            raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might ...")

        attempt.perform = attempt.perform_pack = fails
        run_trial(config)

    monkeypatch.setattr(tune, "run_trial", broken)
    [failure] = grids.run(1, rates=1).failed
    reason = "its process died 3 times, most recently after RuntimeError: CUDA error: unspecified launch failure"
    assert (failure.status, failure.reason) == ("killed", reason)
    starts = [event for event in grids.events(1) if event["event"] == "start"]
    assert len(starts) == len({event["pid"] for event in starts}) == 3, "no process was used twice"
    assert _awaited(lambda: [event for event in starts if not trial_log.alive(event)][2:], 60.0), "nor is one left"


def _awaited(what: Callable[[], list[Any]], seconds: float = 600.0) -> list[Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s in vain")
