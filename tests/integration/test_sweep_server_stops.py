"""A sweep whose tracking server stops answering: it says for what it waits, and goes on with nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_head import free_ports
from swept import training, trials
from waiting import wait_for

from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import EXPERIMENT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]
TRIALS = 4
DEADLINE_S = 600.0
SWEEP = f"""
name: stopped
methods: [random]
dataset: digits
ipc: 1
teacher: resnet18_w16
student: convnet_w32
protocol: {{rd3-reduced: {{epochs: 8, labels: hard, precision: fp32}}}}
space:
  lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}
trials: {TRIALS}
batch: 2
test: {{student_seeds: [0]}}
"""


class Server:
    """``mlflow server`` with SQLite on a loopback port; all of its processes can be stopped and continued."""

    def __init__(self, folder: Path):
        (port,) = free_ports(1)
        folder.mkdir()
        self.uri = f"http://127.0.0.1:{port}"
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
                 "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", folder / "files"],
                stdout=log, stderr=log, cwd=folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip

    def all(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        for process in self.all():
            process.send_signal(number)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server")
    try:
        wait_for(made.ready, DEADLINE_S)
        yield made
    finally:
        for process in made.all():
            process.kill()
        made.process.wait()


def test_a_sweep_waits_for_a_server_that_is_stopped(server: Server, tmp_path: Path):
    home, log = tmp_path / "home", tmp_path / "driver.log"
    (file := tmp_path / "stopped.yaml").write_text(SWEEP)
    environment = {name: value for name, value in os.environ.items() if name not in ("RD3_ARTIFACTS", "RAY_ADDRESS")}
    with open(log, "wb") as said:
        driver = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "sweep", str(file), "--concurrent", "1"],
            stdout=said, stderr=said, cwd=tmp_path,
            env={**environment, "RD3_HOME": str(home), "MLFLOW_TRACKING_URI": server.uri, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        wait_for(lambda: (len(trials(home)) >= 2 and training(home)) or driver.poll() is not None, DEADLINE_S)
        assert driver.poll() is None, log.read_text()
        before = trials(home)
        server.send(signal.SIGSTOP)
        stopped = time.monotonic()
        wait_for(lambda: "waiting: " in log.read_text() or driver.poll() is not None, DEADLINE_S)
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() - stopped < 90, "the trials of a batch, then 20 s; requests time out after 120 s"
        time.sleep(3)
        server.send(signal.SIGCONT)
        assert driver.wait(timeout=DEADLINE_S) == 0, log.read_text()
    finally:
        driver.kill()
        server.send(signal.SIGCONT)
    assert f"waiting: Writing to MLflow at {server.uri} takes more than 20 s." in log.read_text()
    after = trials(home)
    assert [trial.number for trial in after] == list(range(TRIALS))
    assert [(trial.params, trial.value) for trial in before] == [(trial.params, trial.value) for trial in after[:2]]
    tracker = Tracker(Place(server.uri, str(home / "artifacts"), home))
    runs = tracker.search([tracker.experiment(EXPERIMENT)], {"rd3.ledger": str(home / "artifacts")})
    states = sorted((run.data.tags["rd3.kind"], run.info.status) for run in runs)
    assert states == [("sweep", "FINISHED")] + [("sweep trial", "FINISHED")] * TRIALS
    logged = {int(run.data.tags["rd3.trial"]) for run in runs if run.data.tags["rd3.kind"] == "sweep trial"}
    assert logged == set(range(TRIALS))
