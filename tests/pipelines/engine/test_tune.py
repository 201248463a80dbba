"""Starting Ray: a late node is tried again, any other failure is one sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib
import pytest
import ray

from pipelines.cluster import ray as cluster
from pipelines.engine import workers
from rd3.errors import RD3Error
from rd3.hardware import cores

LATE = "The current node timed out during startup. This could happen because some of the raylet failed."


@pytest.fixture
def inits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``ray.init`` raises, call by call; calls are put at the end."""
    planned: list[Any] = []

    def init(**options: Any) -> None:
        planned.append(options)
        error = planned.pop(0)
        if isinstance(error, Exception):
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return planned


def test_a_node_that_is_late_is_started_again(inits: list[Any]):
    inits += [Exception(LATE), Exception(LATE), None]
    with cluster.ray_cluster():
        assert [options["address"] for options in inits] == ["local"] * 3


def test_a_node_that_never_comes_is_named(inits: list[Any]):
    inits += [Exception(LATE)] * 3
    with pytest.raises(RD3Error, match="Cannot start Ray on this machine: The current node timed out"):
        cluster.ray_cluster().__enter__()


def test_a_cluster_that_does_not_answer_is_named_before_ray_waits_for_it(inits: list[Any], closed_port: int):
    address = f"127.0.0.1:{closed_port}"
    with pytest.raises(RD3Error, match=rf"The Ray cluster at {address} does not respond: Connection refused\."):
        cluster.ray_cluster(address).__enter__()
    assert inits == []


def test_the_temporary_folder_is_short_private_and_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    longest = Path("/tmp") / ("x" * (cluster._LONGEST_ROOT - len("/tmp/")))
    session = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert len(f"{longest}/rd3-4194304-0/r/{session}") <= 107
    for given, used in ((longest, longest), (tmp_path / ("y" * 30), Path("/tmp"))):
        given.mkdir(exist_ok=True)
        monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda given=given: str(given))
        with cluster.ray_folder() as folder:
            assert folder.parent.parent == used
            assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert not folder.parent.exists()
    longest.rmdir()


def test_no_place_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path / ("y" * 30)))
    monkeypatch.setattr(cluster, "_FREE_BYTES", 2**80)
    with (
        pytest.raises(RD3Error, match=r"y is longer than 27 characters, /tmp is full\..*TMPDIR"),
        cluster.ray_folder(),
    ):
        pass


def test_folders_that_only_begin_like_those_of_killed_processes_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with subprocess.Popen(["true"]) as ended:
        pass
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cluster, "_LONGEST_ROOT", 1000)
    others = {f"rd3-{os.getppid()}-0", "rd3-9un8rrjt", f"rd3-{ended.pid}-results"}
    for name in (*others, f"rd3-{ended.pid}-0"):
        (tmp_path / name).mkdir()
    with cluster.ray_folder() as folder:
        assert {path.name for path in tmp_path.iterdir()} == others | {folder.parent.name}


def test_folders_of_killed_drivers_are_deleted_and_those_of_live_ones_kept(monkeypatch: pytest.MonkeyPatch):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: short)
        dead, live, other = (Path(short, name) for name in ("rd3-999999999-0", f"rd3-{os.getppid()}-0", "rd3-x"))
        for folder in (dead, live, other):
            folder.mkdir()
        with cluster.ray_folder() as one, cluster.ray_folder() as second:
            assert one != second
            assert not dead.exists() and live.exists() and other.exists()


def test_the_folder_of_a_process_in_another_container_is_kept(monkeypatch: pytest.MonkeyPatch):
    """Containers that share /tmp do not see each other's processes."""
    if os.geteuid():
        pytest.skip("namespaces can be made by root alone")
    script = "from pipelines.cluster import ray\nwith ray.ray_folder() as folder: print(folder.parent)"
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short, subprocess.Popen(["true"]) as ended:
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: short)
        Path(short, f"rd3-{ended.pid}-0").mkdir()
        with cluster.ray_folder() as folder:
            command = ["unshare", "--pid", "--fork", sys.executable, "-c", script]
            other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            assert list(Path(short).iterdir()) == [folder.parent]
            assert re.fullmatch(rf"{short}/rd3-\d-0", other)
        assert list(Path(short).iterdir()) == []


def test_the_quota_of_a_container_counts(tmp_path: Path):
    if os.geteuid():
        pytest.skip("file systems can be mounted by root alone")
    script = """
mount -t tmpfs none /sys/fs/cgroup && echo "$1" > /sys/fs/cgroup/cpu.max &&
exec "$2" -c 'from rd3.hardware import cores; print(cores())'
"""
    for quota, expected in (("50000 100000", 1), ("max 100000", len(os.sched_getaffinity(0)))):
        command = ["unshare", "--mount", "sh", "-c", script, "sh", quota, sys.executable]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(shown.stdout) == expected


def test_an_allocation_of_slurm_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "16")
    assert cores() == 16
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cores() == 3
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    assert cores() == 2


def test_a_cluster_that_grows_is_counted_again_now_and_then(monkeypatch: pytest.MonkeyPatch):
    clock, sizes = [0.0], [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: sizes.pop(0))
    counted = workers.RayWorkers()
    seen = []
    for clock[0] in (0.0, 9.0, 11.0, 20.0):
        seen.append(counted.devices())
    assert seen == [(2.0, 0.0)] * 2 + [(4.0, 1.0)] * 2
