"""Ray's launcher on two "machines" of loopback: up, a grid file that travels, the same results, down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.integration, pytest.mark.platform, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
GRID = Path(__file__).with_name("six_cells.yaml")
NODES = {"a": "127.0.0.2", "b": "127.0.0.3"}
BIN = Path(sys.executable).parent


def _missing() -> str:
    """What this machine lacks to be two, in words."""
    if os.geteuid() != 0:
        return "not root"
    lacks = [program for program in ("/usr/sbin/sshd", "rsync", "unshare", "ssh-keygen") if not shutil.which(program)]
    if lacks:
        return f"no {', '.join(lacks)}"
    tried = subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False)
    return "no namespaces" if tried.returncode else ""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder with artifacts and tracking database that both nodes see."""
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster_file(tmp_path: Path, shared: Path) -> Iterator[Path]:
    """Two fake nodes, and the shipped cluster file with this test's paths."""
    lacking = _missing()
    if lacking:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"cannot play two machines: {lacking}")
    nodes = tmp_path / "nodes"
    environment = os.environ | {"NODES": str(nodes), "RAY_BIN": str(BIN)}
    script = ROOT / "infra" / "ray" / "fake-node.sh"
    started = []
    try:
        for name, ip in NODES.items():
            log = open(tmp_path / f"{name}.log", "wb")  # noqa: SIM115 - the node writes it
            started.append(subprocess.Popen([script, name, ip], env=environment, stderr=log, start_new_session=True))
            log.close()
            _wait_for(ip, tmp_path / f"{name}.log")
        (nodes / "nodes.env").write_text(
            f"RD3_ARTIFACTS={shared / 'artifacts'}\nMLFLOW_TRACKING_URI=sqlite:///{shared / 'mlflow.db'}\n"
            "RD3_HOME=~/.rd3\nRAY_AUTH_MODE=token\n"
        )
        config = yaml.safe_load((ROOT / "infra" / "ray" / "loopback.yaml").read_text())
        config["cluster_name"] = f"rd3-test-{os.getpid()}"
        config["auth"]["ssh_private_key"] = str(nodes / "ssh" / "id")
        config["file_mounts"] = {far: near.replace(".nodes", str(nodes)) for far, near in config["file_mounts"].items()}
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        yield path
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)  # the namespace goes with its first process, and all in it
            process.wait()


def _wait_for(ip: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection((ip, 22), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """A program of the project's environment, as the submitter."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RD3_", "MLFLOW_", "RAY_"))
    }
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **more}
    command = [str(BIN / str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)


def correct(artifacts: Path) -> dict[str, int]:
    entries = [json.loads(path.read_text()) for path in (artifacts / "by-key" / "evaluation").glob("*.json")]
    assert {entry["made"]["threads"] for entry in entries} == {1}
    return {entry["key"]: entry["result"]["correct"] for entry in entries}


def test_a_grid_on_two_machines(cluster_file, shared, tmp_path):
    up = run("ray", "up", "-y", cluster_file)
    assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
    try:
        _wait_for_workers(cluster_file)
        rd3 = ("python", "-m", "pipelines.cli")
        home = {"RD3_HOME": str(tmp_path / "submitter")}
        behind = run("ray", "submit", cluster_file, "pipelines/run_grid.py", "--", "mine.yaml")
        assert behind.returncode != 0
        assert "no grid file mine.yaml on the cluster node" in behind.stdout
        unseen = run(*rd3, "submit", GRID, "--launcher", cluster_file, "--env", "RD3_ARTIFACTS=~/artifacts", **home)
        assert unseen.returncode == 1
        assert "cannot see the artifact folder" in unseen.stdout
        sent = run(*rd3, "submit", GRID, "--launcher", cluster_file, **home)
        assert sent.returncode == 0, sent.stdout[-3000:] + sent.stderr[-3000:]
        assert "8 completed, 0 reused, 0 failed" in sent.stdout
    finally:
        down = run("ray", "down", "-y", cluster_file)
    assert down.returncode == 0, down.stdout[-3000:]
    for name in NODES:
        made = (tmp_path / "nodes" / name / "home" / ".rd3" / "trials.jsonl").read_text()
        assert '"event": "made"' in made, f"node {name} made nothing"
    alone = run("python", "-m", "pipelines.cli", "run", GRID, RD3_HOME=str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    assert correct(shared / "artifacts") == correct(tmp_path / "alone" / "artifacts")
    assert len(correct(shared / "artifacts")) == 6


def _wait_for_workers(cluster_file: Path) -> None:
    deadline = time.monotonic() + 600
    while True:
        said = run("ray", "exec", cluster_file, "ray status").stdout
        if "/2.0 CPU" in said:
            return
        assert time.monotonic() < deadline, said[-2000:]
        time.sleep(2)
