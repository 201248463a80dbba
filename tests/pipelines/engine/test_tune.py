"""Starting Ray: a late node is tried again, any other failure is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.cluster import ray as cluster
from rd3.errors import RD3Error

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


def test_a_node_that_is_late_is_started_again(inits: list[Any], tmp_path: Path):
    inits += [Exception(LATE), Exception(LATE), None]
    with cluster.ray_cluster(tmp_path):
        assert [options["address"] for options in inits] == ["local"] * 3


def test_a_node_that_never_comes_is_named(inits: list[Any], tmp_path: Path):
    inits += [Exception(LATE)] * 3
    with pytest.raises(RD3Error, match="Cannot start Ray on this machine: The current node timed out"):
        cluster.ray_cluster(tmp_path).__enter__()


def test_a_cluster_that_does_not_answer_is_named_before_ray_waits_for_it(
    inits: list[Any], tmp_path: Path, closed_port: int
):
    address = f"127.0.0.1:{closed_port}"
    with pytest.raises(RD3Error, match=rf"The Ray cluster at {address} does not respond: Connection refused\."):
        cluster.ray_cluster(tmp_path, address).__enter__()
    assert inits == []


def test_the_socket_folder_is_short_and_one_a_home_and_lease(tmp_path: Path):
    one, other = cluster._ray_folder(tmp_path / ("x" * 200), "driver"), cluster._ray_folder(tmp_path, "driver")
    assert len({one, other, cluster._ray_folder(tmp_path, "sweep-k")}) == 3
    assert len(f"{one}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store") < 107


def test_two_drivers_on_one_home_leave_each_other_alone(inits: list[Any], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    inits += [None, None]
    with cluster.ray_cluster(tmp_path):
        live = Path(inits[-1]["_temp_dir"])
        live.mkdir()
        with cluster.ray_cluster(tmp_path, name="sweep-k"):
            assert inits[-1]["_temp_dir"] != str(live)
        assert live.is_dir()
    assert not live.exists()


def test_a_cluster_that_grows_is_counted_again_now_and_then(monkeypatch: pytest.MonkeyPatch):
    clock, sizes = [0.0], [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: sizes.pop(0))
    counted = cluster.Cluster()
    seen = []
    for clock[0] in (0.0, 9.0, 11.0, 20.0):
        seen.append(counted.devices())
    assert seen == [(2.0, 0.0)] * 2 + [(4.0, 1.0)] * 2
