"""What a driver works with, in the hands of a test: no ledger, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.engine.job import Job
from pipelines.grid.queue import Demand, Queued
from rd3.errors import RD3Error
from tracking.place import Place


class FakeJobs:
    """Jobs that name their recipe and no more."""

    def job(self, recipe: Queued, demand: Demand) -> Job:
        return Job(recipe.kind, recipe.key, "{}", {}, Place("", "", Path()), "0", None, demand.gpus > 0)


class FakeBooks:
    """Remembers what was kept and forgotten; ``error`` is raised when something is to be kept."""

    def __init__(self, error: RD3Error | None = None):
        self.error = error
        self.kept: list[str] = []
        self.forgotten: list[tuple[str, str]] = []
        self.intact: set[str] = set()
        """Keys whose files are intact at their source."""
        self.verified: list[str] = []
        """Keys that were verified there."""
        self.failures: list[tuple[str, str, str]] = []
        """Kind, key and status of what the log of trials says of dead processes."""

    def keep(self, entry: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.kept.append(entry["key"])

    def damaged(self, kind: str, key: str) -> bool:
        self.verified.append(key)
        return key not in self.intact

    def forget(self, kind: str, key: str) -> None:
        self.forgotten.append((kind, key))

    def log_failure(self, kind: str, key: str, status: str, reason: str) -> None:
        self.failures.append((kind, key, status))


class FixedCluster:
    """A cluster of so many CPUs and GPUs."""

    def __init__(self, cpus: float, gpus: float = 0.0):
        self.size = cpus, gpus

    def devices(self) -> tuple[float, float]:
        return self.size
