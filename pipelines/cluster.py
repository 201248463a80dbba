"""Ray itself: on this machine or by address, quiet, and what a trial takes of it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.joining import check_address, first_line, not_joined
from pipelines.queue import Demand
from rd3.errors import RD3Error

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_MAX_PENDING_TRIALS_PG": "1024",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
"""The searcher alone decides how many trials are out (Tune allows a custom one a single pending trial by default), Tune
writes no result files, prints no tables and leaves signals to the driver."""


def _ray_folder(home: Path, name: str) -> Path:
    """Ray's own folder, one a home and lease: its sockets must have short paths, and two users must not share it."""
    return Path(tempfile.gettempdir()) / f"rd3-ray-{hashlib.sha256(f'{home}/{name}'.encode()).hexdigest()[:8]}"


def _children() -> set[int]:
    """Processes that this one has started (Linux; empty elsewhere)."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(process) for listed in lists for process in listed.read_text().split()}


def _start(explain: Callable[[Exception], RD3Error], **options: Any) -> None:
    """Start or join; Ray gives a node 30 s to come up, which a busy machine may exceed, so it is tried a few times."""
    import ray

    for last in (False, False, True):
        before = _children()
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
            return
        except Exception as error:  # Ray raises a bare Exception for a node that is late
            ray.shutdown()
            for process in _children() - before:  # shutdown knows nothing of a node that did not come up
                os.kill(process, signal.SIGKILL)
            if last or "timed out during startup" not in str(error):
                raise explain(error) from None


def _not_started(error: Exception) -> RD3Error:
    return RD3Error(
        f"Cannot start Ray on this machine: {first_line(error)}", "run the command again when the machine is less busy"
    )


@contextlib.contextmanager
def ray_cluster(home: Path, address: str | None = None, name: str = "driver") -> Iterator[None]:
    """Ray on this machine, or the cluster at ``address``; a Ray that is already there is used and left alone.

    ``name``: the lease that its one user holds.  What is left in the folder of that lease is of a killed driver.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    import ray

    if ray.is_initialized():
        yield
        return
    folder = _ray_folder(home, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address:
            check_address(address)
            _start(partial(not_joined, address), address=address)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed driver left
            _start(
                _not_started,
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=False,
                _temp_dir=str(folder),
            )
    try:
        yield
    finally:
        with warnings.catch_warnings():
            # Ray leaves the handles of its processes to the garbage collector, which would complain of them later.
            warnings.simplefilter("ignore", ResourceWarning)
            ray.shutdown()
            gc.collect()
        if not address:
            shutil.rmtree(folder, ignore_errors=True)


def cluster_demands(*, exclusive: bool, gpu_share: float = 0.25) -> dict[str, Demand]:
    """What a trial of each kind takes on the cluster that is there.

    On a CPU one core each.  On GPUs a set or a teacher has a whole one, because generation time is a result, and
    evaluations share.  ``exclusive`` gives a set all cores of a machine.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = max((node.get("CPU", 1.0) for node in nodes), default=1.0)
    gpus = any(node.get("GPU", 0.0) for node in nodes)
    return {
        "teacher": Demand(1.0, 1.0 if gpus else 0.0),
        "statistics": Demand(1.0, 1.0 if gpus else 0.0),
        "set": Demand(cores if exclusive else 1.0, 1.0 if gpus else 0.0, whole=exclusive),
        "share": Demand(1.0, 1.0 if gpus else 0.0),
        "evaluation": Demand(1.0, gpu_share if gpus else 0.0),
    }


def cluster_devices() -> tuple[float, float]:
    """(CPUs, GPUs) of the whole cluster as it is now."""
    import ray

    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)
