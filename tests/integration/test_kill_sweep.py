"""A sweep whose worker and driver are killed, on a dataset whose test images nobody can read: it goes on, exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from swept import training, trials

from rd3.datasets import Roots, add_folder, open_dataset
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import EXPERIMENT

# Its shorter sibling: faults/test_fault_sweep.py.  Unread test images: tests/rd3/datasets/test_files.py.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.platform,
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings("ignore"),
]

TRIALS = 10
DEADLINE_S = 900.0
SWEEP = """
name: killed
methods: [random]
dataset: pictures
ipc: 5
teacher: resnet18_w16
protocol: {{rd3-reduced: {{epochs: 24, labels: hard}}}}
space:
  lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}
  zeta: {{low: 0.5, high: 3, step: 0.25}}
  batch_size: [10, 25, 50]
trials: {trials}
batch: 4
validate_epochs: 4
test: {{student_seeds: [0, 1]}}
"""


class Bench:
    """A home with digits as picture files; the test images can be spoiled and mended."""

    def __init__(self, root: Path, trials: int):
        self.home, self.pictures, self.trials = root / "home", root / "pictures", trials
        self.home.mkdir()
        self.file = root / "killed.yaml"
        self.file.write_text(SWEEP.format(trials=trials))
        self.place = Place(f"sqlite:///{self.home / 'mlflow.db'}", str(self.home / "artifacts"), self.home)
        digits = open_dataset("digits", Roots(None, root))
        for split in ("train", "test"):
            labels = digits.labels(split)
            for index, pixels in enumerate(digits.images(split, range(len(labels)))):
                folder = self.pictures / split / str(labels[index])
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:04d}.png")
        add_folder("pictures", self.pictures, Roots(None, self.home), resolution=32)
        self.whole = {path: path.read_bytes() for path in (self.pictures / "test").rglob("*.png")}

    def spoil(self) -> None:
        for path in self.whole:
            path.write_bytes(b"no picture at all")

    def mend(self) -> None:
        for path, content in self.whole.items():
            path.write_bytes(content)

    def start(self) -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[2]
        drop = ("RD3_DATA", "RD3_ARTIFACTS", "MLFLOW_TRACKING_URI")
        env = {name: value for name, value in os.environ.items() if name not in drop}
        with open(self.home / "driver.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "sweep", self.file, "--concurrent", "2"],
                stdout=log, stderr=log, cwd=root, env={**env, "RD3_HOME": str(self.home), "PYTHONPATH": str(root)},
            )  # fmt: skip

    def log(self) -> str:
        return (self.home / "driver.log").read_text()

    def in_flight(self) -> list[int]:
        return training(self.home)

    def trials_now(self) -> list[Any]:
        return trials(self.home)

    def runs(self) -> list[Any]:
        client = Tracker(self.place).client
        return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])

    def wait(self, driver: subprocess.Popen[bytes], what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if found := what():
                return found
            if driver.poll() is not None:
                pytest.fail(f"the driver ended with {driver.returncode} too early:\n{self.log()[-3000:]}")
            time.sleep(0.05)
        pytest.fail(f"waited {DEADLINE_S:.0f} s in vain")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, TRIALS)


@pytest.fixture
def drivers(bench: Bench) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts drivers; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(bench.start())
        return started[-1]

    yield start
    for driver in started:
        driver.kill()
        driver.wait()


def kill_and_go_on(bench: Bench, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    """The story; ``bench.trials`` at least 10."""
    bench.spoil()

    # A worker is killed while it trains; Ray starts the trial again.
    driver = start()
    [victim, *_others] = bench.wait(driver, bench.in_flight)
    os.kill(victim, signal.SIGKILL)
    bench.wait(driver, lambda: len(bench.trials_now()) >= 4)

    # The driver is killed while trials are under way; the studies hold whole trials only.
    orphans = bench.wait(driver, lambda: len(bench.trials_now()) >= bench.trials // 2 and bench.in_flight())
    driver.kill()
    driver.wait()
    before = bench.trials_now()
    assert bench.trials // 2 <= len(before) < bench.trials
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in orphans) and time.monotonic() < deadline:
        time.sleep(0.1)

    # The same command goes on, and is asked to stop: nothing of it stays RUNNING.
    driver = start()
    bench.wait(driver, bench.in_flight)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=DEADLINE_S) == 130, bench.log()[-3000:]
    assert "RUNNING" not in {run.info.status for run in bench.runs()}

    # The same command completes the trials.  Of the test split nothing can be read, so the winner's test is refused.
    driver = start()
    assert driver.wait(timeout=DEADLINE_S) == 3, bench.log()[-3000:]
    assert f"{bench.pictures}/test/" in bench.log() and "the image cannot be decoded" in bench.log()
    trials = bench.trials_now()
    assert [trial.number for trial in trials] == list(range(bench.trials))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert [trial.params for trial in trials[: len(before)]] == [trial.params for trial in before]
    assert len({str(sorted(trial.params.items())) for trial in trials}) == bench.trials
    assert not list(Ledger(bench.place.artifacts).objects.names("sweeps/tests/"))

    # The test images can be read again: the winner is tested, once.
    bench.mend()
    for _again in range(2):
        driver = start()
        assert driver.wait(timeout=DEADLINE_S) == 0, bench.log()[-3000:]
    ledger = Ledger(bench.place.artifacts)
    assert len(list(ledger.objects.names("sweeps/tests/"))) == 1
    tested = [ledger.find("evaluation", key).recipe["tested_on"] for key in ledger.keys("evaluation")]
    assert sorted(tested) == ["test"] * 4 + ["validation"]
    assert [trial.params for trial in bench.trials_now()] == [trial.params for trial in trials]
    runs = bench.runs()
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if run.data.tags["rd3.kind"] == "sweep trial"]
    assert sorted(int(run.data.tags["rd3.trial"]) for run in children) == list(range(bench.trials))
    assert {run.data.params["tested_on"] for run in children} == {"validation"}


def test_a_sweep_survives_its_workers_and_drivers_and_never_sees_the_test_split(
    bench: Bench, drivers: Callable[[], subprocess.Popen[bytes]]
):
    kill_and_go_on(bench, drivers)
