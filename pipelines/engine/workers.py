"""What runs the trials of a driver: a Ray cluster, or the driver's own process."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.cluster.local import ray_log, watched
from pipelines.cluster.nodes import check_platform
from pipelines.cluster.ray import cluster_devices, ray_cluster
from pipelines.grid.queue import Demand, demands
from pipelines.settings import Session
from rd3.errors import RD3Error, is_device_error

if TYPE_CHECKING:
    from pipelines.engine.driver import Driver
    from pipelines.engine.interrupts import Interrupts

_COUNT_EVERY_S = 10.0
"""Seconds between two counts of a cluster's devices."""


class Workers(Protocol):
    """What runs trials: :meth:`open` is entered once, before any other call but :meth:`check`."""

    machines_may_vanish: bool
    """Whether machines may disappear, so that unfinished work has to be uploaded."""

    def check(self, session: Session, datasets: Iterable[str]) -> None:
        """Raise :class:`RD3Error` for the first problem that would stop a run."""

    def open(self, home: Path) -> AbstractContextManager[None]:
        """Start or join the cluster, if there is one; its own logs are written below ``home``."""

    def devices(self) -> tuple[float, float]:
        """(CPUs, GPUs) at this moment."""

    def demands(self, *, exclusive: bool, gpu_share: float) -> dict[str, Demand]:
        """Resources per trial of each kind; ``exclusive`` gives a set a whole machine."""

    def run_queue(self, driver: Driver, home: Path, interrupts: Interrupts) -> None:
        """Run the driver's queue to its end, or until the driver is leaving: it then may raise :class:`StopDriver`."""


class RayWorkers:
    """Trials of Ray Tune on the cluster at ``address`` (default: on this machine)."""

    def __init__(self, address: str | None = None):
        self._address = address
        self._devices, self._counted_at = (0.0, 0.0), -math.inf
        self.machines_may_vanish = address is not None

    def check(self, session: Session, datasets: Iterable[str]) -> None:
        check_platform(session, self._address, datasets)

    def open(self, home: Path) -> AbstractContextManager[None]:
        return ray_cluster(self._address, ray_log(home))

    def devices(self) -> tuple[float, float]:
        """Counted again at intervals, as a cluster may grow."""
        if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
            self._devices, self._counted_at = cluster_devices(), time.monotonic()
        return self._devices

    def demands(self, *, exclusive: bool, gpu_share: float) -> dict[str, Demand]:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = max((node.get("CPU", 1.0) for node in nodes), default=1.0)
        gpus = any(node.get("GPU", 0.0) for node in nodes)
        return demands(cpus, gpus, exclusive=exclusive, gpu_share=gpu_share)

    def run_queue(self, driver: Driver, home: Path, interrupts: Interrupts) -> None:
        from pipelines.engine.tune import run_queue

        with interrupts.deferring():  # signals stop it only between two steps
            watched(lambda: run_queue(driver, home))


class ThisProcess:
    """One trial after another in the driver's process, without Ray, with one thread as every trial has."""

    machines_may_vanish = False

    def check(self, session: Session, datasets: Iterable[str]) -> None:
        check_platform(session)

    def open(self, home: Path) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def devices(self) -> tuple[float, float]:
        import torch

        return 1.0, 1.0 if torch.cuda.is_available() else 0.0

    def demands(self, *, exclusive: bool, gpu_share: float) -> dict[str, Demand]:
        cpus, gpus = self.devices()
        return demands(cpus, gpus > 0, exclusive=exclusive, gpu_share=1.0)

    def run_queue(self, driver: Driver, home: Path, interrupts: Interrupts) -> None:
        for number in itertools.count():
            config = driver.next_config(f"trial-{number}")
            if config is None:
                break
            _run(driver, f"trial-{number}", config)


def _run(driver: Driver, trial_id: str, config: dict[str, Any]) -> None:
    """Run one trial and pass its reports on, as Tune does between processes.

    After a pack for which there is too little memory, its recipes run one by one; a failed device ends the run.
    """
    from pipelines.engine.attempt import Unfit
    from pipelines.engine.trial import run_jobs

    last: dict[str, Any] = {}

    def receive(report: dict[str, Any]) -> None:
        last.update(report)
        driver.on_report(trial_id, report)

    try:
        run_jobs(config["jobs"], receive)
    except Unfit as error:
        if error.__cause__ is None or is_device_error(error.__cause__):
            raise RD3Error(
                f"This process cannot go on after {error}.", "run the same command again; it resumes"
            ) from None
        driver.on_report(trial_id, {"unfit": str(error)})
        driver.on_death(trial_id, str(error))
    else:
        driver.on_end(trial_id, last)
