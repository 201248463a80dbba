"""A service of the Ray on this machine is killed: the driver says so in a sentence, cleans up, and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from pipelines.engine import trial_log

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

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
FOR_EVER, SHORT = "100000", "1"
DEADLINE_S = 240.0


def rd3(home: Path, epochs: str, **options: Any) -> subprocess.Popen[str]:
    """``rd3 run`` of a grid with one evaluation, in a process of its own."""
    (home / "dies.yaml").write_text(GRID.replace("EPOCHS", epochs))
    mine = ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", str(home / "dies.yaml")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment, "RD3_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail("waited in vain")


def evaluating(home: Path) -> bool:
    events = trial_log.events(home)
    return any((event["event"], event["kind"]) == ("start", "evaluation") for event in events)


def statuses(home: Path) -> set[str]:
    """States of all MLflow runs."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.status for run in client.search_runs(experiments)}


@pytest.mark.parametrize(
    ("service", "words"),
    [("raylet", "its raylet"), ("gcs_server", "its control service (gcs_server)")],
)
def test_a_service_of_ray_dies(service: str, words: str, tmp_path: Path):
    driver = rd3(tmp_path, FOR_EVER)
    try:
        wait_for(lambda: evaluating(tmp_path) or driver.poll() is not None)
        processes = psutil.Process(driver.pid).children(recursive=True)
        (victim,) = (one for one in processes if one.name() == service)
        os.kill(victim.pid, signal.SIGKILL)
        out, err = driver.communicate(timeout=DEADLINE_S)
    finally:
        driver.kill()
    assert driver.returncode == 3
    log = tmp_path / "logs/ray.log"
    assert f"RayDied: Ray on this machine has stopped working: {words} has died" in err
    assert f"its last messages are in {log}." in err
    assert "Fix: run the same command again, which resumes" in err
    assert service in log.read_text()
    for text in (out, err):  # Ray's own messages, stack traces and state dumps
        assert "C++" not in text and "Raylet is terminated" not in text and "Check failure" not in text
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in processes))
    assert not list(Path("/tmp").glob(f"rd3-{driver.pid}-*"))
    assert "RUNNING" not in statuses(tmp_path)

    again = rd3(tmp_path, SHORT)
    again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0
    assert not log.exists()
    (made,) = {event["key"] for event in trial_log.events(tmp_path) if event["kind"] == "set"}
    assert trial_log.attempts(tmp_path, made) == 1, "the set was to be reused"
