"""Messages between driver and worker, as plain data.  A trial is a list of jobs; each job runs one recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rd3.evaluation.sharing import LogitsCache
from rd3.store import Entry
from tracking.place import Place
from tracking.store import GivenStore


@dataclass(frozen=True)
class Job:
    """One recipe of a trial."""

    kind: str
    key: str
    recipe: str
    """The recipe as JSON."""
    facts: dict[str, Any]
    """Parameters of the MLflow run that are not in the recipe, such as the teacher's role."""
    place: Place
    experiment_id: str
    """MLflow experiment of the recipe's run."""
    parent_run_id: str | None
    """MLflow run of the grid, below which that of the recipe is nested; None without a grid."""
    gpu: bool = False
    alone: bool = False
    """Nothing else runs on this machine at the same time (``timing: exclusive`` in the grid file)."""
    larger: str | None = None
    """Key of a set with more images per class that begins with exactly these images, if any."""
    blocks: tuple[int, int] | None = None
    """(first, step): generate only every ``step``-th block from ``first``; another trial assembles them.  None: all."""
    blocks_uploaded: bool = False
    """Other trials have uploaded blocks of this set to the artifact root, which all machines reach."""
    given: list[dict[str, Any]] = field(default_factory=list)
    """Ledger entries of the recipe's parents (what it is made from), and of theirs."""
    keep_student: bool = False
    """Keep the weights of the student of an evaluation."""
    recorded: dict[str, Any] | None = None
    """Ledger entry of an evaluation that runs again to keep its student; its result must be found again."""
    keep_unfinished: bool = False
    """Upload unfinished work, because this machine may be preempted."""
    ignore_earlier: bool = False
    """Run from scratch: an earlier result was stored, and its artifact is missing or damaged."""
    finished: list[str] = field(default_factory=list)
    """``kind/key`` of recently finished recipes, whose scratch folders workers delete."""
    grid: str = ""
    """Name of the grid, if the recipe is one of its results."""
    cached_logits: LogitsCache | None = None
    """How an evaluation handles cached logits of its teachers."""

    @property
    def home(self) -> Path:
        return self.place.home

    @property
    def folder(self) -> Path:
        if self.blocks is None:
            return work_folder(self.home, self.kind, self.key)
        first, step = self.blocks
        return work_folder(self.home, "share", f"{self.key}-{first + 1}of{step}")


JOBS = TypeAdapter(list[Job])
"""Converts the jobs of a trial to plain data (``dump_python``) and back (``validate_python``)."""


def given_store(jobs: Sequence[Job]) -> GivenStore:
    """A store with the ancestors of the recipes of one trial."""
    return GivenStore(jobs[0].place, [Entry.model_validate(entry) for job in jobs for entry in job.given])


@dataclass(frozen=True)
class TrialEnd:
    """How a recipe of a trial ended: with an ``entry`` if it is done, else with a reason."""

    status: str
    """``done``, or that of the error (:func:`rd3.errors.why`): ``failed``, ``diverged``, ``oom``, ``unsupported``."""
    reason: str = ""
    entry: dict[str, Any] | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Parents (kind, key) whose artifact is missing or damaged."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialEnd:
        plain = json.loads(text)
        return cls(**{**plain, "broken": [(kind, key) for kind, key in plain["broken"]]})


def work_folder(home: Path, kind: str, key: str) -> Path:
    """Scratch folder of a recipe."""
    return home / "work" / kind / key
