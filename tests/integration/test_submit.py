"""Grids sent to a real Ray head by its Jobs API: the same results, in good order, without secrets."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.platform,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(1800),
]

HERE = Path(__file__).parent
GRID = HERE / "six_cells.yaml"
SECRET = "correct-horse-battery"
RD3 = Callable[..., subprocess.CompletedProcess[str]]


def loaded(name: str) -> ModuleType:
    """A module beside this one."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def head() -> Iterator[object]:
    with loaded("ray_head").ray_head(RD3_TEST_SECRET=SECRET) as started:
        yield started


@pytest.fixture
def rd3(head, tmp_path) -> RD3:
    """Runs ``rd3`` as the submitter, who has a home of its own and secrets in the environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RD3_", "MLFLOW_", "RAY_"))
    }
    environment |= head.env | {
        "RD3_HOME": str(tmp_path / "submitter"),
        "RAY_API_SERVER_ADDRESS": head.url,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MLFLOW_TRACKING_PASSWORD": SECRET,
        "PYTHONPATH": str(HERE.parents[1]),
        "COLUMNS": "300",
    }

    def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, words)]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    return run


def correct(home: Path) -> dict[str, int]:
    """Correct predictions by evaluation."""
    entries = [json.loads(path.read_text()) for path in (home / "artifacts/by-key/evaluation").glob("*.json")]
    assert {entry["made"]["threads"] for entry in entries} == {1}
    return {entry["key"]: entry["result"]["correct"] for entry in entries}


def statuses(home: Path) -> list[str]:
    """How MLflow's runs ended."""
    return [status for (status,) in sqlite3.connect(home / "mlflow.db").execute("SELECT status FROM runs")]


def test_a_job_makes_what_one_machine_makes(rd3, head, tmp_path):
    sent = rd3("submit", GRID, "--env", f"RD3_HOME={tmp_path / 'job'}")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert f"MiB to {head.url}: rd3, tracking, pipelines and the grid" in sent.stdout
    assert "8 completed, 0 reused, 0 failed" in sent.stdout
    alone = rd3("run", GRID, RD3_HOME=str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    counts = correct(tmp_path / "job")
    assert counts == correct(tmp_path / "alone")
    assert len(counts) == 6 and len(set(counts.values())) > 2

    again = rd3("submit", GRID, "--env", f"RD3_HOME={tmp_path / 'job'}", "--no-wait")
    [job] = [word.rstrip(";") for word in again.stdout.split() if word.startswith("rd3-six-cells-")][:1]
    followed = rd3("jobs", "logs", job, "--follow")
    assert (followed.returncode, "0 completed, 8 reused" in followed.stdout) == (0, True)
    rows = json.loads(rd3("jobs", "list", "--json").stdout)
    assert [(row["grid"], row["state"]) for row in rows[:2]] == [("six-cells", "succeeded")] * 2

    shown = subprocess.run(
        [sys.executable, "-c", _EVERYTHING],
        env=os.environ | head.env | {"URL": head.url},
        capture_output=True,
        text=True,
    )
    assert job in shown.stdout, shown.stderr
    assert "RD3_HOME" in shown.stdout
    assert SECRET not in shown.stdout


_EVERYTHING = """
import os
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(os.environ["URL"])
for job in client.list_jobs():
    print(job.json())
    if job.submission_id:
        print(client.get_job_logs(job.submission_id))
"""


def test_a_job_that_is_stopped_leaves_nothing_running_and_goes_on(rd3, tmp_path):
    slow, home = tmp_path / "slow.yaml", tmp_path / "job"
    slow.write_text(GRID.read_text().replace("six-cells", "slow").replace("epochs: 25", "epochs: 2000"))
    sent = rd3("submit", slow, "--env", f"RD3_HOME={home}", "--no-wait")
    assert sent.returncode == 0, sent.stderr
    started = home / "trials.jsonl"
    deadline = time.monotonic() + 600
    while "evaluation" not in (started.read_text() if started.is_file() else ""):
        assert time.monotonic() < deadline, rd3("jobs", "logs", "rd3-slow").stdout
        time.sleep(0.2)
    assert "RUNNING" in statuses(home)
    stopped = rd3("jobs", "stop", "rd3-slow")
    assert "stopped" in stopped.stdout, stopped.stderr
    assert rd3("jobs", "status", "rd3-slow").returncode == 130
    assert "interrupted by SIGTERM; run the same command again to resume" in rd3("jobs", "logs", "rd3-slow").stdout
    assert sorted(set(statuses(home))) == ["FINISHED", "KILLED"]


def test_a_dataset_of_the_users_own_travels(rd3, tmp_path):
    for part in ("train", "test"):
        for label, class_id in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / part / class_id
            folder.mkdir(parents=True)
            for index in range(4):
                Image.fromarray(np.full((32, 32, 3), 90 * label + 9 * index, np.uint8)).save(folder / f"{index}.png")
    assert rd3("data", "add", "pets", "--folder", tmp_path / "images", "--resolution", 32).returncode == 0
    grid = tmp_path / "pets.yaml"
    text = GRID.read_text().replace("digits]", "pets]").replace("six-cells", "pets").replace("ipc: [2, 5]", "ipc: [1]")
    grid.write_text(text.replace("teacher: resnet18_w16", "teacher: resnet18").replace("[0, 1, 2]", "[0]"))
    shared = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}",
        "RD3_ARTIFACTS": str(tmp_path / "shared" / "artifacts"),
        "RD3_HOME": str(tmp_path / "node"),
    }
    refused = rd3("submit", grid, MLFLOW_TRACKING_URI=shared["MLFLOW_TRACKING_URI"])
    assert refused.returncode == 2
    assert "MLFLOW_TRACKING_URI is sqlite:" in refused.stderr and "a path on this machine" in refused.stderr

    words = [word for name, value in shared.items() for word in ("--env", f"{name}={value}")]
    lacking = rd3("submit", grid, *words)
    assert lacking.returncode == 2, lacking.stdout
    assert "DataMissing: Dataset pets is not on" in lacking.stdout and "rd3 data push pets" in lacking.stdout
    shared_by_submitter = {name: value for name, value in shared.items() if name != "RD3_HOME"}
    pushed = rd3("data", "push", "pets", **shared_by_submitter)
    assert "pets: 16 files" in pushed.stdout, pushed.stderr
    sent = rd3("submit", grid, *words)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "2 completed, 0 reused, 0 failed" in sent.stdout
    assert (tmp_path / "node" / "data" / "pets" / "train" / "cat" / "0.png").is_file()


def refusal(head, code: str, **more: str) -> str:
    """What a submitter's Python says of an error; Ray remembers how it authenticates for as long as a process lives."""
    environment = os.environ | head.env | more
    code = f"import platform; from pipelines.cluster import submit; {code}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_another_token_is_refused(head, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    said = refusal(head, f"submit.connect({head.url!r})", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert "refused the login: the token is wrong or missing" in said
    assert refusal(head, f"submit.connect({head.url!r})") == ""


def test_another_version_is_refused_before_anything_is_sent(head):
    probed = f"submit.probe(submit.connect({head.url!r}), 'x')"
    assert refusal(head, probed) == ""
    said = refusal(head, f"platform.python_version = lambda: '3.99.0'; {probed}")
    assert re.search(r"The cluster at x runs Python 3\.\d+\.\d+, this machine has Python 3\.99\.0", said)
