"""Checks before a run: servers respond and accept the login, and every node can access what trials need."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.cluster.ray import error_line, on_node, ray_cluster
from pipelines.settings import Session
from pipelines.transfer.datasets import absent, pushed_bundle
from rd3.errors import RD3Error, StoreError, TrackingError
from tracking.ledger.object_store import folder_errors, open_objects
from tracking.place import Place
from tracking.runs.reachable import check, sqlite_path
from tracking.upkeep.health import check_place

NODE_WITHIN_S = 120.0
SERVER_WITHIN_S = 10.0
"""Seconds within which a node of the cluster and the tracking server must respond."""


def check_platform(session: Session, address: str | None = None, datasets: Iterable[str] = ()) -> None:
    """Raise :class:`RD3Error` for the first problem that would stop a run on this platform.

    ``address``: the Ray cluster to run on; its nodes are checked, also for ``datasets``.
    """
    check_place(session)
    if address:
        with ray_cluster(address):
            check_nodes(session, datasets)


def check_nodes(place: Place, datasets: Iterable[str]) -> None:
    """Raise :class:`RD3Error` unless every node of the Ray cluster can run trials.

    A node needs access to the artifact folder and the tracking database if these are paths, a login at the tracking
    server if there is one, and each dataset on its disk or pushed (`rd3 data push`).  Nodes that join later are not
    checked.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if not ray.cluster_resources().get("CPU"):
        raise RD3Error(
            f"No node of the cluster can run trials: {len(nodes)} nodes with 0 CPUs.",
            "wait until `ray status` shows a worker",
        )
    if set(nodes) == {here}:
        return
    names = sorted(set(datasets))
    with marker_files(place) as markers:
        asked = [on_node(node, _problem, address, place, markers, names) for node, address in nodes.items()]
        for address, answer in zip(nodes.values(), asked, strict=True):
            try:
                problem, lacking = ray.get(answer, timeout=NODE_WITHIN_S)
            except ray.exceptions.RayError as error:
                raise RD3Error(
                    f"Cannot check node {address}: {error_line(error)}.",
                    "install the same version of RD3 on every node",
                ) from None
            if problem is not None:
                raise problem
            for dataset in lacking:
                pushed_bundle(dataset, place, f"node {address}")


def _problem(node: str, place: Place, markers: list[Path], datasets: list[str]) -> tuple[RD3Error | None, list[str]]:
    """On a node: what keeps it from running trials, if anything; else which datasets it lacks."""
    hidden = next((marker for marker in markers if not is_visible(marker)), None)
    if hidden is not None:
        return folder_not_shared(node, hidden, place), []
    if not place.tracking_uri.startswith("sqlite"):
        try:
            check(place.tracking_uri, SERVER_WITHIN_S)
        except RD3Error as error:
            return TrackingError(f"On node {node}: {error.message}", error.fix), []
    return None, [name for name in datasets if absent(name, place.roots)]


def is_visible(path: Path) -> bool:
    """Whether this process sees a path; False as well if it must not enter a folder above it."""
    with contextlib.suppress(OSError):
        return path.exists()
    return False


@contextlib.contextmanager
def marker_files(place: Place) -> Iterator[list[Path]]:
    """Create a temporary file in each folder that all nodes must share."""
    shared = open_objects(place.artifacts).folder
    folders = [] if shared is None else [shared]
    if place.tracking_uri.startswith("sqlite"):
        folders.append(sqlite_path(place.tracking_uri).parent)
    markers = [folder / f".nodes-{uuid.uuid4().hex}" for folder in folders]
    try:
        for marker in markers:
            with folder_errors(marker.parent):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
        yield markers
    finally:
        for marker in markers:
            marker.unlink(missing_ok=True)


def folder_not_shared(node: str, marker: Path, place: Place) -> RD3Error:
    """The error for a shared folder that a node cannot see, with the variable to change."""
    if marker.parent == open_objects(place.artifacts).folder:
        return StoreError(
            f"Node {node} cannot see the artifact folder {marker.parent} of the driver.",
            "set RD3_ARTIFACTS to s3://bucket/prefix, or to a folder that all nodes share",
        )
    return TrackingError(
        f"Node {node} cannot see the tracking database in {marker.parent} of the driver.",
        "set MLFLOW_TRACKING_URI to a server that all nodes reach",
    )
