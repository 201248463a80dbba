"""Records of sweeps: scores of trials, every test of a winner, and the runs in MLflow.

Below the artifact root::

    sweeps/scores/<evaluation>.json          score of a trial on validation images, which is reused
    sweeps/tests/<target>/<test>.json        one tested winner; <target> is a digest of set, dataset and student

The runs have an experiment of their own, with a parent run per sweep and a child run per Optuna trial.  They are
found by the tags ``rd3.sweep`` (the sweep's key), ``rd3.study`` and ``rd3.trial`` (the trial's number).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rd3.recipe import Key
from rd3.values import digest
from tracking.ledger.object_store import ObjectStore, read_as
from tracking.runs.runs import Tracker

EXPERIMENT = "rd3 sweeps"


class SweepRecords:
    """Scores and tests of sweeps in an object store."""

    def __init__(self, objects: ObjectStore):
        self.objects = objects

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_as(self.objects, name, json.loads, "Sweep record", "delete that file")

    def _write(self, name: str, value: Mapping[str, Any], only_if_absent: bool = False) -> None:
        data = json.dumps(value, indent=1, sort_keys=True) + "\n"
        self.objects.put(name, data.encode(), only_if_absent)

    def score(self, evaluation: Key) -> dict[str, Any] | None:
        """The score of an evaluation on validation images, or None."""
        return self._read(f"sweeps/scores/{evaluation}.json")

    def keep_score(self, evaluation: Key, score: Mapping[str, Any]) -> None:
        """Store a score unless a longer curve of the same evaluation is stored: a pruned trial ends early."""
        known = self.score(evaluation)
        if known is None or len(known["curve"]) <= len(score["curve"]):
            self._write(f"sweeps/scores/{evaluation}.json", score)

    def record_test(self, target: str, test: Mapping[str, Any]) -> None:
        """Record a test before it runs, even if it fails; its ``evaluations`` are their keys."""
        self._write(_test_name(target, test["evaluations"]), test, only_if_absent=True)

    def forget_test(self, target: str, evaluations: Sequence[Key]) -> None:
        """Remove the record of a test from a target, if it has one."""
        self.objects.delete(_test_name(target, evaluations))

    def tests(self, target: str = "") -> list[dict[str, Any]]:
        """Every test on record for a target, or for all, oldest first."""
        folder = f"sweeps/tests/{target}/" if target else "sweeps/tests/"
        found = [self._read(name) for name in list(self.objects.names(folder))]
        return sorted((test for test in found if test), key=lambda test: (test["recorded_at"], test["evaluations"]))


def _test_name(target: str, evaluations: Sequence[Key]) -> str:
    return f"sweeps/tests/{target}/{digest(list(evaluations))[:32]}.json"


@dataclass(frozen=True)
class TrialRun:
    """One finished Optuna trial, as logged to MLflow."""

    study: str
    number: int
    name: str
    parameters: Mapping[str, str]
    curve: Sequence[tuple[int, float]]
    """(epoch, top-1 accuracy in per cent on validation images)."""
    top1_pct: float | None
    tags: Mapping[str, str]
    """``rd3.state`` (the trial's state in Optuna) and other tags to filter by."""


class SweepRuns:
    """The MLflow runs of one sweep, written by its driver only."""

    def __init__(self, tracker: Tracker, key: str):
        self.tracker, self.key = tracker, key
        self.experiment_id = tracker.experiment(EXPERIMENT)
        self.run_id = ""
        self.started = 0
        """Start of the parent run in ms since 1970."""
        self._logged: dict[tuple[str, str], Any] = {}
        """Child runs by study and number of the trial."""

    @property
    def _tags(self) -> dict[str, str]:
        return {"rd3.sweep": self.key, "rd3.ledger": self.tracker.place.artifacts}

    def open(self, name: str, text: str, tags: Mapping[str, str]) -> None:
        """Create or reopen the sweep's parent run with status RUNNING, and log the sweep file as ``sweep.yaml``."""
        own = {**self._tags, **self.tracker.owner, "rd3.kind": "sweep", "rd3.status": "running", **tags}
        with self.tracker.errors():
            runs = self.tracker.search([self.experiment_id], self._tags)
            parents = [run for run in runs if run.data.tags.get("rd3.kind") == "sweep"]
            run = self.tracker.reopen_or_create(parents, self.experiment_id, f"sweep {name}", own)
            self.run_id, self.started = run.info.run_id, run.info.start_time
            trials = [run for run in runs if run.data.tags.get("rd3.kind") == "sweep trial"]
            self._logged = {(run.data.tags["rd3.study"], run.data.tags["rd3.trial"]): run for run in trials}
            self.tracker.client.log_text(self.run_id, text, "sweep.yaml")

    def log(self, trial: TrialRun) -> None:
        """Log a trial as a finished child run; a child run that has ended already is not changed."""
        place = (trial.study, str(trial.number))
        known = self._logged.get(place)
        if known is not None and known.info.status != "RUNNING":
            return
        own = {"rd3.kind": "sweep trial", "rd3.study": trial.study, "rd3.trial": place[1]}
        tags = {**self._tags, **self.tracker.owner, **trial.tags, **own, "mlflow.parentRunId": self.run_id}
        client = self.tracker.client
        with self.tracker.errors():
            run = known or client.create_run(self.experiment_id, run_name=trial.name, tags=tags)
            begun = run.info.start_time  # fixed timestamps make logging idempotent
            points = [("validation_top1_pct", value, begun + epoch, epoch) for epoch, value in trial.curve]
            if trial.top1_pct is not None:
                points.append(("score", trial.top1_pct, begun, 0))
            self.tracker.log(run.info.run_id, points=points, parameters=trial.parameters)
            client.set_terminated(run.info.run_id, "FINISHED")
            self._logged[place] = client.get_run(run.info.run_id)

    def attach(self, files: Mapping[str, bytes | str], figures: Mapping[str, float]) -> None:
        """Log files (the report and its plots) and metrics of the whole sweep."""
        with self.tracker.errors(), tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            self.tracker.client.log_artifacts(self.run_id, folder)
            self.tracker.log(self.run_id, points=[(name, value, self.started, 0) for name, value in figures.items()])

    def close(self, status: str, reason: str = "") -> None:
        """End the parent run with ``done``, ``failed`` or ``killed``."""
        if not self.run_id:
            return
        # Not ``done``, by which `rd3 ledger rebuild` finds the runs of recipes.
        tags = {"rd3.status": "finished" if status == "done" else status, **({"rd3.reason": reason} if reason else {})}
        ends = {"done": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
        with self.tracker.errors():
            self.tracker.log(self.run_id, tags=tags)
            self.tracker.client.set_terminated(self.run_id, ends[status])
