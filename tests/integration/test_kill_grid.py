"""Workers and drivers that are killed in mid-grid: the same command continues, and the results are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from standstill import held

from pipelines.engine import trial_log
from rd3.errors import StoreError
from tracking.ledger.ledger import Ledger
from tracking.runs.runs import Tracker

# Its shorter siblings: worker and driver killed, and the driver asked to leave, in faults/test_faults.py.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings("ignore"),
]

SHAPE = {"evaluations": 2, "epochs": 20}
"""Evaluations of seconds, so that a signal finds one under way."""
DEADLINE_S = 600.0


class Driver:
    """``tiny_grid.py`` in a process of its own."""

    def __init__(self, home: Path):
        script = Path(__file__).with_name("tiny_grid.py")
        self.log = open(home / "driver.log", "ab")  # noqa: SIM115 - closed with the process
        command = [sys.executable, script, home, str(SHAPE["evaluations"]), str(SHAPE["epochs"])]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def drivers() -> Iterator[Callable[[Path], Driver]]:
    """Starts drivers; none outlives the test."""
    started: list[Driver] = []

    def start(home: Path) -> Driver:
        started.append(Driver(home))
        return started[-1]

    yield start
    for driver in started:
        driver.close()


def wait_for(what: Callable[[], Any], driver: Driver | None = None) -> Any:
    """What ``what`` returns once that is true; fails when the deadline passes or the driver ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        if driver is not None and driver.process.poll() is not None:
            log = Path(driver.log.name).read_text()
            pytest.fail(f"the driver ended with {driver.process.returncode} too early:\n{log[-3000:]}")
        time.sleep(0.02)
    pytest.fail(f"waited {DEADLINE_S:.0f} s in vain")


def ancestors(process: int) -> Iterator[int]:
    """Parent, grandparent ... of a process that may be gone."""
    while process > 1:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return
        yield process


def in_flight(home: Path, driver: Driver | None = None) -> dict[str, Any] | None:
    """An evaluation that is being made at this moment, by a worker of ``driver`` or by anybody."""
    last: dict[str, dict[str, Any]] = {event["key"]: event for event in trial_log.events(home)}
    for event in reversed(list(last.values())):
        ours = driver is None or driver.process.pid in ancestors(event["pid"])
        if (event["event"], event["kind"]) == ("start", "evaluation") and trial_log.alive(event) and ours:
            return event
    return None


def correct(tiny: ModuleType, home: Path) -> dict[str, int]:
    """Right test predictions by evaluation."""
    ledger = Ledger(tiny.session_in(home).artifacts)
    return {key: ledger.find("evaluation", key).result["correct"] for key in ledger.keys("evaluation")}


def statuses(tiny: ModuleType, home: Path) -> list[tuple[str, str]]:
    """(recipe key, status) of every MLflow run."""
    client = Tracker(tiny.session_in(home)).client
    runs = client.search_runs([client.get_experiment_by_name("rd3").experiment_id])
    return sorted((run.data.tags.get("rd3.key", "grid"), run.info.status) for run in runs)


def test_a_grid_survives_the_death_of_workers_and_drivers(
    tiny: ModuleType, tmp_path: Path, drivers: Callable[[Path], Driver]
):
    quiet, rough = tmp_path / "quiet", tmp_path / "rough"
    quiet.mkdir()
    rough.mkdir()

    # A worker is killed while it makes an evaluation; the same driver starts it again.
    driver = drivers(rough)
    with held(rough, lambda: in_flight(rough, driver), lambda what: wait_for(what, driver)) as victim:
        os.kill(victim["pid"], signal.SIGKILL)
    assert not trial_log.is_done(rough, victim["key"]), "the worker was to die in mid-recipe"
    wait_for(lambda: trial_log.attempts(rough, victim["key"]) >= 2, driver)

    # Nobody else drives this ledger meanwhile.
    with pytest.raises(StoreError, match=f"process {driver.process.pid} on"):
        tiny.run(rough, **SHAPE)

    # The driver is killed while an evaluation is being made; its workers do not live on.
    with held(rough, lambda: in_flight(rough, driver), lambda what: wait_for(what, driver)) as orphan:
        driver.process.kill()
    assert not trial_log.is_done(rough, orphan["key"]), "the driver was to die in mid-grid"
    driver.process.wait()
    wait_for(lambda: in_flight(rough) is None)

    # The same command goes on, and is asked to stop: it leaves no run in state RUNNING.
    driver = drivers(rough)
    wait_for(lambda: in_flight(rough, driver), driver)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(timeout=DEADLINE_S) == 130
    assert in_flight(rough) is None
    left = statuses(tiny, rough)
    assert "RUNNING" not in {status for _key, status in left}
    assert ("grid", "KILLED") in left

    # The same command completes the grid; elsewhere nothing disturbs it.
    assert tiny.run(rough, **SHAPE).exit_code == 0
    assert tiny.run(quiet, **SHAPE).exit_code == 0
    assert correct(tiny, rough) == correct(tiny, quiet)
    assert len(correct(tiny, rough)) == 2 * SHAPE["evaluations"]
    done = [event["key"] for event in trial_log.events(rough) if event["event"] == "done"]
    assert sorted(done) == sorted(tiny.tiny(tiny.session_in(rough), **SHAPE).recipes)
    assert max(event["attempt"] for event in trial_log.events(rough) if event["event"] == "start") >= 2
    assert statuses(tiny, rough) == [(key, "FINISHED") for key in sorted([*done, "grid"])]
