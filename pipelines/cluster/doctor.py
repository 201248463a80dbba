"""The checks of ``rd3 doctor``: rows with a subject, a state and a detail.

``wrong`` makes the command fail; ``warning`` and ``missing`` (data that a grid may not need) do not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipelines.cluster.nodes import NODE_WITHIN_S, SERVER_WITHIN_S, folder_not_shared, is_visible, marker_files
from pipelines.cluster.ray import error_line, on_node, ray_cluster
from pipelines.settings import Session
from rd3.datasets import Roots
from rd3.device import resolve_precision
from rd3.errors import RD3Error, StoreError
from tracking.ledger.faults import without_password
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.reachable import check
from tracking.upkeep.health import (
    CLOCK_ERROR_S,
    CLOCK_WARNING_S,
    check_store,
    clocks_apart,
    probe_artifacts,
    probe_store,
)

PACKAGES = ("torch", "torchvision", "timm", "mlflow", "optuna", "ray", "boto3")
SAME = ("ray", "rd3")
"""Packages whose version must match on driver and workers, as must Python's."""
_LEAST_GIB = 1.0
"""Least free disk space for RD3's home."""


State = Literal["ok", "warning", "wrong", "missing"]


class Row(NamedTuple):
    """One check."""

    what: str
    state: State
    detail: str


def rows_here(session: Session) -> Iterator[Row]:
    """Check this machine as the driver of runs."""
    yield Row("python", "ok", platform.python_version())
    yield from map(_package, PACKAGES)
    yield _devices()
    yield _disk(session.home)
    yield from _tracking(session)
    yield _tried("ledger", session.artifacts, lambda: probe_store(session.artifacts))
    with contextlib.suppress(StoreError):  # of an address that cannot be used, as the row above says
        objects = open_objects(session.artifacts)
        if objects.folder is None:  # a bucket
            yield _clock("clock", objects.clock_ahead_s, objects.server())
    yield from _data(session.roots)


def rows_there(session: Session, address: str) -> Iterator[Row]:
    """Check the Ray cluster at ``address``, and from one of its workers everything that a trial needs."""
    try:
        with ray_cluster(address):
            yield from _cluster(session)
    except RD3Error as error:
        yield Row("ray cluster", "wrong", str(error))


def _cluster(session: Session) -> Iterator[Row]:
    import ray
    from ray.exceptions import RayError

    nodes = [node for node in ray.nodes() if node["Alive"]]
    yield Row("ray cluster", "ok", f"{len(nodes)} nodes, {ray.cluster_resources().get('CPU', 0):g} CPUs")
    # A node that is not the head, if there is one: the head is often the driver's own machine.
    node = min(nodes, key=lambda node: "node:__internal_head__" in node["Resources"])
    worker = f"worker {node['NodeManagerAddress']}"

    def ask(task: Callable[..., Any], *arguments: Any) -> Any:
        return ray.get(on_node(node["NodeID"], task, *arguments), timeout=NODE_WITHIN_S)

    try:
        with marker_files(session) as markers:
            seen = ask(look_around, node["NodeManagerAddress"], session, _versions(), markers)
        asked = time.time()  # the worker process is running by now, so this call takes no time
        now = ask(_now)
        answered = time.time()
    except RayError as error:
        yield Row(
            worker, "wrong", f"{error_line(error)}. Fix: install the same rd3 there, or check the log of that node"
        )
        return
    yield _clock(f"{worker}: clock", lambda: (asked + answered) / 2 - now, worker)
    yield from (Row(f"{worker}: {what}", state, detail) for what, state, detail in seen)


def _now() -> float:
    return time.time()


def look_around(address: str, place: Place, versions: dict[str, str], markers: Collection[Path]) -> list[Row]:
    """Check a worker, with the addresses and folders of trials.

    ``markers`` are temporary files of the driver, which a worker sees if their folders are shared.
    """
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    rows = [_same(name, theirs, _versions()[name]) for name, theirs in versions.items()]
    if is_token_auth_enabled():
        rows.append(Row("ray token", "ok", "required"))
    else:
        danger = "no token required: anyone who reaches the cluster can run code"
        rows.append(Row("ray token", "wrong", f"{danger}. Fix: set RAY_AUTH_MODE=token on every node"))
    rows.append(_disk(place.home))
    hidden = [folder_not_shared(address, marker, place) for marker in markers if not is_visible(marker)]
    rows += [Row("shared folder", "wrong", str(error)) for error in hidden]
    if not hidden:  # the check would create the folders here, and pass
        rows += _shared(place)
    data = list(_data(place.roots))
    absent = ", ".join(row.what.removeprefix("data ") for row in data if row.state == "missing")
    rows += [row for row in data if row.state != "missing"]
    if absent:
        rows.append(Row("data not there", "missing", f"{absent}; pushed datasets (rd3 data push) are pulled"))
    return rows


def _shared(place: Place) -> Iterator[Row]:
    """Check the tracking server and artifacts as a trial reaches them."""
    yield from _tracking(place)
    try:
        has_credentials = open_objects(place.artifacts).has_credentials()
    except StoreError as error:
        yield Row("artifacts root", "wrong", str(error))
        return
    if has_credentials:
        yield _tried("artifacts root", place.artifacts, lambda: probe_store(place.artifacts))
    else:
        yield Row("s3", "ok", "no credentials, as intended: files go through the tracking server")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in SAME}


def _same(name: str, driver: str, here: str) -> Row:
    if driver == here:
        return Row(name, "ok", here)
    return Row(name, "wrong", f"{here} there, {driver} on the driver. Fix: install the same version on both")


def _package(name: str) -> Row:
    try:
        return Row(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Row(name, "wrong", f"not installed; pip install {name}")


def _devices() -> Row:
    import torch

    if torch.cuda.is_available():
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        names = ", ".join(map(torch.cuda.get_device_name, devices))
    else:
        devices, names = [torch.device("cpu")], f"CPU only, {torch.get_num_threads()} threads"
    precisions = sorted({resolve_precision(device, "auto") for device in devices})
    return Row("device", "ok", f"{names}; precision auto is {' or '.join(precisions)} here")


def _disk(home: Path) -> Row:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"1")
    except OSError as error:
        return Row(
            "disk", "wrong", f"{home} is not writable ({error.strerror}). Fix: set RD3_HOME to a writable folder"
        )
    free_gib = shutil.disk_usage(home).free / 2**30
    free = f"{free_gib:.1f} GiB free at {home}"
    if free_gib < _LEAST_GIB:
        return Row("disk", "wrong", f"{free}. Fix: free space, or set RD3_HOME to another disk")
    return Row("disk", "ok", free)


def _tracking(place: Place) -> Iterator[Row]:
    """Check login and, with a server, artifact upload and download."""
    reached = _tried("tracking", place.tracking_uri, lambda: check(place.tracking_uri, SERVER_WITHIN_S))
    yield reached
    if reached.state == "ok" and place.tracking_uri.startswith("http"):
        yield _files_through_tracking(place)


def _files_through_tracking(place: Place) -> Row:
    """Check upload and download through MLflow; on failure report RD3's own bucket, if that fails as well."""
    row = _tried("files through tracking", place.tracking_uri, lambda: probe_artifacts(place))
    if row.state == "ok":
        return row
    try:
        objects = open_objects(place.artifacts)
        if objects.folder is None and objects.has_credentials():
            check_store(place.artifacts)
    except StoreError as error:
        return row._replace(detail=f"MLflow cannot store files; RD3's bucket, which it may share, fails too: {error}")
    return row


def _tried(what: str, where: str, attempt: Callable[[], Any]) -> Row:
    try:
        attempt()
    except RD3Error as error:
        return Row(what, "wrong", str(error))
    return Row(what, "ok", without_password(where))


def _clock(what: str, ask: Callable[[], float | None], other: str) -> Row:
    try:
        ahead_s = ask()
    except RD3Error as error:
        return Row(what, "wrong", str(error))
    if ahead_s is None or abs(ahead_s) <= CLOCK_WARNING_S:
        return Row(what, "ok", f"agrees with {other}")
    state: State = "wrong" if abs(ahead_s) > CLOCK_ERROR_S else "warning"
    return Row(what, state, f"{clocks_apart(ahead_s, other)} Fix: set the clock (NTP) on both")


def _data(roots: Roots) -> Iterator[Row]:
    from rd3 import datasets

    for one in datasets.doctor(roots):
        detail = f"{one.message} Fix: {one.fix}" if one.state == "wrong" and one.fix else one.message
        yield Row(f"data {one.dataset}", one.state, detail or str(one.folder))
