"""A service of the Ray on this machine is killed: the driver says so in a sentence, cleans up, and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from swept import training, trials
from waiting import wait_for

from pipelines.engine import trial_log

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),
]

GRID = """
name: dies
methods: [random]
datasets: [digits]
ipc: [1]
teacher: resnet18_w16
students: [convnet_w32]
protocols: [rd3-reduced]
protocol: {labels: hard, epochs: EPOCHS, precision: fp32}
student_seeds: [0]
"""
SWEEP = """
name: dies
methods: [random]
dataset: digits
ipc: 1
teacher: resnet18_w16
student: convnet_w32
protocol: {rd3-reduced: {epochs: 120, labels: hard, precision: fp32}}
space:
  lr: {low: 1.0e-4, high: 1.0e-1, log: true}
trials: 3
batch: 1
test: {student_seeds: [0]}
"""
FOR_EVER, SHORT = "100000", "1"
DEADLINE_S = 480.0
ENDS_WITHIN_S = 60.0
"""A driver whose Ray has died ends in a few seconds; machines may be busy."""


def rd3(home: Path, command: str, text: str) -> subprocess.Popen[str]:
    """``rd3 run`` or ``rd3 sweep`` of a file with this text, in a process of its own."""
    (home / "dies.yaml").write_text(text)
    mine = ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", command, str(home / "dies.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment, "RD3_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def evaluating(home: Path) -> bool:
    events = trial_log.events(home)
    return any((event["event"], event["kind"]) == ("start", "evaluation") for event in events)


def statuses(home: Path) -> set[str]:
    """States of all MLflow runs."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.status for run in client.search_runs(experiments)}


def kill(driver: subprocess.Popen[str], service: str, home: Path) -> None:
    """Kill a service of the driver's Ray; the driver says so in a sentence, leaves nothing behind, and exits with 3."""
    words = {"raylet": "its raylet", "gcs_server": "its control service (gcs_server)"}[service]
    processes = psutil.Process(driver.pid).children(recursive=True)
    (victim,) = (one for one in processes if one.name() == service)
    os.kill(victim.pid, signal.SIGKILL)
    out, err = driver.communicate(timeout=ENDS_WITHIN_S)
    assert driver.returncode == 3, err
    log = home / "logs/ray.log"
    assert f"RayDied: Ray on this machine has stopped working: {words} has died" in err
    assert f"its last messages are in {log}." in err
    assert "Fix: run the same command again, which resumes" in err
    assert service in log.read_text()
    for text in (out, err):  # Ray's own messages, stack traces and state dumps
        assert "C++" not in text and "Raylet is terminated" not in text and "Check failure" not in text
        assert "Traceback" not in text
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in processes), DEADLINE_S)
    assert not list(Path("/tmp").glob(f"rd3-{driver.pid}-*"))
    assert "RUNNING" not in statuses(home)


services = pytest.mark.parametrize("service", ["raylet", "gcs_server"])


@services
def test_a_service_of_ray_dies(service: str, tmp_path: Path):
    driver = rd3(tmp_path, "run", GRID.replace("EPOCHS", FOR_EVER))
    try:
        wait_for(lambda: evaluating(tmp_path) or driver.poll() is not None, DEADLINE_S)
        kill(driver, service, tmp_path)
    finally:
        driver.kill()
    again = rd3(tmp_path, "run", GRID.replace("EPOCHS", SHORT))
    again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0
    assert not (tmp_path / "logs/ray.log").exists()
    (made,) = {event["key"] for event in trial_log.events(tmp_path) if event["kind"] == "set"}
    assert trial_log.attempts(tmp_path, made) == 1, "the set was to be reused"


@services
def test_a_service_of_ray_dies_in_a_sweep(service: str, tmp_path: Path):
    driver = rd3(tmp_path, "sweep", SWEEP)
    try:
        wait_for(lambda: (trials(tmp_path) and training(tmp_path)) or driver.poll() is not None, DEADLINE_S)
        before = trials(tmp_path)
        kill(driver, service, tmp_path)
    finally:
        driver.kill()
    again = rd3(tmp_path, "sweep", SWEEP)
    _out, err = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0, err
    assert statuses(tmp_path) == {"FINISHED"}
    after = trials(tmp_path)
    assert [trial.number for trial in after] == [0, 1, 2]
    assert [(trial.params, trial.value) for trial in before] == [
        (trial.params, trial.value) for trial in after[: len(before)]
    ]
