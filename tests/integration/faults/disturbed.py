"""One grid on a stack of real servers, run by the command that users run, and what is true of it at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from standstill import Event, held
from tiny_grid import name_quick_teacher

from pipelines.engine import trial_log
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.runs import Tracker

ROOT = Path(__file__).parents[3]


class Disturbed:
    """A ledger, a home and the drivers that work on them, one after the other."""

    verb = "run"
    """What `rd3` is told to do with the file."""
    deadline_s = 600.0
    """How long anything may take."""

    def __init__(self, env: dict[str, str], grid: Path, home: Path, name: str):
        """``env``: what reaches the servers and the cluster; ``name``: beginning of the name of a new ledger there."""
        home.mkdir(parents=True, exist_ok=True)
        bucket = env["RD3_ARTIFACTS"].removeprefix("s3://").split("/")[0]
        self.place = Place(env["MLFLOW_TRACKING_URI"], f"s3://{bucket}/{name}-{uuid.uuid4().hex[:8]}", home)
        self.env = {**os.environ, **env, "RD3_HOME": str(home), "RD3_ARTIFACTS": self.place.artifacts}
        self.grid, self.home = grid, home
        self.log = home.with_name(f"{home.name}.log")  # beside the home, whose disk a test may fill
        self.driver: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Name the grid's teacher, one of a single epoch, in the ledger."""
        with self.environment():
            name_quick_teacher(self.place.artifacts, self.home)

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        """A driver in a process of its own; its output goes to ``log``."""
        command = [sys.executable, "-m", "pipelines.cli", self.verb]
        command += [str(self.grid), "--address", self.env["RAY_ADDRESS"]]
        with open(self.log, "ab") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=self.env | env)
        return self.driver

    def wait(self) -> int:
        return self.driver.wait(timeout=self.deadline_s)

    def finish(self) -> None:
        """Run the command until it says that all is done."""
        if self.driver is None or self.driver.poll() is not None:
            self.start()
        code = self.wait()
        assert code == 0, f"exit code {code}:\n{self.words()}"

    def words(self) -> str:
        return self.log.read_text()[-4000:]

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()

    def until(self, what: Callable[[], Any]) -> Any:
        """What ``what`` returns once that is true; fails when time is up or the driver has ended before."""
        deadline = time.monotonic() + self.deadline_s
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            if self.driver is not None and self.driver.poll() is not None:
                raise AssertionError(f"the driver ended with {self.driver.returncode} too early:\n{self.words()}")
            time.sleep(0.05)
        raise AssertionError(f"waited {self.deadline_s:.0f} s in vain:\n{self.words()}")

    def in_flight(
        self, kind: str | None = None, event: str = "start", where: Callable[[Event], Any] = lambda event: True
    ) -> Event | None:
        """A recipe that a live process makes now; ``event`` ``made``: that is on the disk and not yet sent."""
        last = {each["key"]: each for each in trial_log.events(self.home)}
        for each in reversed(list(last.values())):
            if each["event"] == event and kind in (None, each["kind"]) and trial_log.alive(each) and where(each):
                return each
        return None

    def held(
        self, kind: str | None = None, event: str = "start", where: Callable[[Event], Any] = lambda event: True
    ) -> AbstractContextManager[Event]:
        """What ``in_flight`` finds, as soon as there is one, standing still within the block."""
        return held(self.home, lambda: self.in_flight(kind, event, where), self.until)

    def attempts(self, key: str) -> int:
        return trial_log.attempts(self.home, key)

    def is_done(self, key: str) -> bool:
        return trial_log.is_done(self.home, key)

    # What is asked of a grid that is through; none of it needs the driver.

    def correct(self) -> dict[str, int]:
        """Right test predictions by evaluation."""
        with self.environment():
            ledger = Ledger(self.place.artifacts)
            return {key: ledger.find("evaluation", key).result["correct"] for key in ledger.keys("evaluation")}

    def statuses(self) -> list[tuple[str, str]]:
        """(recipe key, status) of every MLflow run of this ledger."""
        with self.environment():
            tracker = Tracker(self.place)
            runs = tracker.search([tracker.experiment("rd3")], {"rd3.ledger": self.place.artifacts})
            return sorted((run.data.tags.get("rd3.key", "grid"), run.info.status) for run in runs)

    def files(self, key: str, folder: str) -> list[str]:
        """Names in a folder of the MLflow run of a recipe; [] while there is neither."""
        with self.environment():
            tracker = Tracker(self.place)
            runs = tracker.search([tracker.experiment("rd3")], {"rd3.ledger": self.place.artifacts, "rd3.key": key})
            return [each.path for run in runs for each in tracker.client.list_artifacts(run.info.run_id, folder)]

    def done(self, kind: str | None = None) -> list[str]:
        """Keys, of one kind or all, in the order of their ``done`` lines."""
        events = (event for event in trial_log.events(self.home) if event["event"] == "done")
        return [event["key"] for event in events if kind in (None, event["kind"])]

    def made_twice(self) -> set[str]:
        """Keys that were completed again though nobody had found their artifact damaged in between."""
        whole: set[str] = set()
        twice: set[str] = set()
        for event in trial_log.events(self.home):
            if event["event"] == "done":
                twice |= whole & {event["key"]}
                whole.add(event["key"])
            elif event["event"] == "forgotten":
                whole.discard(event["key"])
        return twice

    def second_attempts(self) -> int:
        return sum(event["event"] == "start" and event["attempt"] > 1 for event in trial_log.events(self.home))

    def check(self, quiet: Disturbed, *, again: bool = True) -> None:
        """The same results as the undisturbed run; every recipe completed once, in one run that is FINISHED.

        ``again``: the fault must have cost some recipe an attempt.
        """
        assert self.correct() == quiet.correct()
        done = self.done()
        assert not self.made_twice()
        assert set(done) == set(quiet.done())
        assert self.statuses() == [(key, "FINISHED") for key in sorted({*done, "grid"})]
        if again:
            assert self.second_attempts() >= 1

    @contextmanager
    def environment(self) -> Iterator[None]:
        """This process speaks to the servers as the driver does."""
        before = dict(os.environ)
        os.environ.update(self.env)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
