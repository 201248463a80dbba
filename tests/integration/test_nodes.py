"""A real cluster of two nodes is asked whether it can do trials, and what it lacks is said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.cluster.nodes import check_nodes
from rd3.errors import DataMissing, RD3Error, TrackingError
from tracking.place import Place

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that takes no trials, and no worker yet."""
    there = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=there.address, log_to_driver=False)
    try:
        yield there
    finally:
        ray.shutdown()
        there.shutdown()


def test_a_cluster_that_can_and_one_that_cannot(cluster: Cluster, tmp_path: Path):
    place = Place(f"sqlite:///{tmp_path}/db/mlflow.db", str(tmp_path / "artifacts"), tmp_path / "home")
    with pytest.raises(RD3Error, match="No node of the cluster can run trials: 1 nodes with 0 CPUs"):
        check_nodes(place, ["digits"])
    cluster.add_node(num_cpus=1)
    check_nodes(place, ["digits"])
    assert list((tmp_path / "artifacts").iterdir()) + list((tmp_path / "db").iterdir()) == []
    with pytest.raises(DataMissing, match=r"cifar10 is not on node [\d.]+, and has not been pushed.*push cifar10"):
        check_nodes(place, ["digits", "cifar10"])
    (tmp_path / "home" / "data" / "cifar10").mkdir(parents=True)
    check_nodes(place, ["digits", "cifar10"])
    away = Place("http://127.0.0.1:9", place.artifacts, place.home)
    with pytest.raises(TrackingError, match=r"On node [\d.]+: The tracking server http://.*:9 does not respond"):
        check_nodes(away, ["digits"])
