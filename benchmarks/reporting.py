"""Time and memory of the report of 10,000 tracked evaluations, in two shapes.

    python benchmarks/reporting.py [--cells 10000] [--shape seeds|scores ...]

``seeds``: few scores of many seeds; ``scores``: many scores of three seeds.  Entries and MLflow runs (in SQLite) are
written as a run leaves them, with made-up accuracies; then `rd3 report` runs twice, and once for another grid with the
same evaluations, whose name it adds to every run.  Each row is one process from start to exit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipelines.settings import Session, session
from rd3.recipe import EvaluationRecipe, Recipe, SetRecipe, from_json
from rd3.store import Entry, now, sha256_files, write_atomically
from tracking.runs.fields import metrics, params, parent_facts, run_name
from tracking.runs.runs import DIGEST, Tracker, grid_tags
from tracking.store import EXPERIMENT

METHODS = "random, herding, k_center, el2n, forgetting, aum, rded, sre2l, cda, dwa, edc, gvbsm"
GRID = """
name: {name}
datasets: [digits]
teacher: resnet18_w16
set_seeds: [0]
"""
SEEDS = """
methods: [random, rded, sre2l]
ipc: [1, 2, 3, 5, 10]
protocols: [rd3-reduced]
student_seeds: {seeds}
"""
SCORES = f"""
methods: [{METHODS}]
ipc: {{ipcs}}
students: [resnet18_w16, convnet_w32, convnet, wrn_16_2, mobilenet_v2, shufflenet_v2_x0_5, alexnet]
protocols: [rd3-reduced, {{{{rd3-reduced: {{{{labels: hard}}}}}}}}, {{{{rd3-reduced: {{{{temperature: 4}}}}}}}}]
student_seeds: [0, 1, 2]
"""
CELLS_AN_IPC = 12 * 7 * 3 * 3
"""Of the shape ``scores``."""
SHAPES: dict[str, Callable[[int], str]] = {
    "seeds": lambda cells: SEEDS.format(seeds=list(range(cells // 15))),
    "scores": lambda cells: SCORES.format(ipcs=list(range(1, 2 + cells // CELLS_AN_IPC))),
}
"""Name to the part of the grid file that gives about so many cells."""


class Measured(NamedTuple):
    """What one command took, and its standard output."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str


def measured(home: Path, *words: str) -> Measured:
    """Run one `rd3` command to its end; what it says is kept back unless it fails."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        command = [str(Path(sys.executable).parent / "rd3"), *words]
        process = subprocess.Popen(command, env=environment(home), stdout=output, stderr=errors)
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            said = output.read() + errors.read()
            raise SystemExit(f"rd3 {' '.join(words)} ended with {process.returncode}:\n{said}")
        return Measured(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, output.read())


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "RD3_HOME": str(home)}


def entries(recipes: Iterable[Recipe], artifact: Path) -> Iterator[Entry]:
    """A ledger entry with a run for each recipe; all share the files in ``artifact``."""
    files = sha256_files(artifact)
    made = {"code_version": "benchmark", "device": "cpu", "threads": 1, "torch": "2", "host": "here"}
    for recipe in recipes:
        yield Entry(
            kind=recipe.kind,
            key=recipe.key,
            recipe=recipe.model_dump(mode="json"),
            result=result(recipe),
            files=files,
            artifact=artifact.as_uri(),
            run_id=uuid.uuid4().hex,
            made=made | {"finished_at": now()},
        ).sealed()


def result(recipe: Recipe) -> dict[str, float | str]:
    """Made-up figures: accuracies differ by set, student and protocol, and by seed within about two points."""
    times: dict[str, float | str] = {"wall_s": 2.5, "process_s": 2.4, "peak_mib": 900.0}
    if isinstance(recipe, SetRecipe):
        return times | {f"generation_{name}": 3.0 for name in ("wall_s", "process_s")} | {"count": 10 * recipe.ipc}
    if not isinstance(recipe, EvaluationRecipe):
        return times | {"top1_pct": 95.0}
    centre = random.Random(f"{recipe.set} {recipe.student} {recipe.protocol.model_dump_json()}").uniform(20, 80)
    correct = round(3.4 * random.Random(recipe.key).gauss(centre, 2))
    return times | {
        "correct": correct,
        "tested": 340,
        "top1_pct": correct / 3.4,
        "final_loss": 0.01,
        "image_steps": 400 * 10,
        "ran_precision": "bf16",
        "tested_on": "test",
    }


def write_entries(artifacts: Path, found: Iterable[Entry]) -> None:
    """Write the entries of a ledger in a folder, without the fsync of a run."""
    for entry in found:
        target = artifacts / "by-key" / entry.kind / f"{entry.key}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(entry.model_dump(mode="json")))


def record(here: Session, found: list[Entry], grid: str) -> None:
    """Write the entries and, in one transaction, their MLflow runs and that of the grid."""
    write_entries(Path(here.artifacts), found)
    tracker = Tracker(here.with_identity(work=f"grid {grid}"))
    experiment = tracker.experiment(EXPERIMENT)
    grid_run = tracker.grid_run(experiment, grid, grid_yaml="")
    tracker.close_grid(grid_run, ok=True)
    known = {(entry.kind, entry.key): entry for entry in found}
    with sqlite3.connect(here.home / "mlflow.db") as database:
        for entry in found:
            write_run(database, tracker, experiment, grid, grid_run, entry, lambda kind, key: known.get((kind, key)))


def write_run(
    database: sqlite3.Connection,
    tracker: Tracker,
    experiment: str,
    grid: str,
    grid_run: str,
    entry: Entry,
    find: Callable[[str, str], Entry | None],
) -> None:
    """The rows of a finished run in MLflow's tables; of a curve its last point, and no set as its input."""
    recipe = from_json(json.dumps(entry.recipe))
    facts = parent_facts(recipe, find)
    name, at, run_id = run_name(recipe, facts), time.time_ns() // 1_000_000, entry.run_id
    tags = {"rd3.kind": entry.kind, "rd3.key": entry.key, "rd3.attempt": "1", "rd3.status": "done", **tracker.owner}
    tags |= {"mlflow.runName": name, "mlflow.parentRunId": grid_run, DIGEST: str(entry.digest)}
    tags |= grid_tags([grid]) if entry.kind in ("set", "evaluation") else {}
    figures = metrics(entry.result) | {"loss": 0.01, "lr": 0.0, "train_top1_pct": 99.0}
    database.execute(
        "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
        " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)"
        " VALUES (?, ?, 'UNKNOWN', '', '', 'benchmark', 'FINISHED', ?, ?, '', 'active', ?, ?)",
        (run_id, name, at, at, f"{entry.artifact}/{run_id}", int(experiment)),
    )
    for table, pairs in (("tags", tags), ("params", params(recipe, facts))):
        database.executemany(
            f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, run_id) for key, value in pairs.items()],
        )
    for table in ("metrics", "latest_metrics"):
        database.executemany(
            f"INSERT INTO {table} (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, 0, 0, ?)",
            [(key, value, at, run_id) for key, value in figures.items()],
        )


def write_files(artifact: Path) -> None:
    """The files that all results share: a result, and a contact sheet of real digits."""
    artifact.mkdir(parents=True)
    (artifact / "result.json").write_text("{}")
    images, labels = load_digits(return_X_y=True)
    rows = [np.hstack([image.reshape(8, 8) for image in images[labels == label][:10]]) for label in range(10)]
    sheet = np.kron(np.vstack(rows) * 15, np.ones((4, 4))).astype(np.uint8)
    Image.fromarray(sheet).save(artifact / "contact_sheet.png")


def report_of(shape: str, cells: int) -> None:
    """Record the evaluations of a shape and print what its reports take."""
    with tempfile.TemporaryDirectory() as folder:
        home, recipes, grid = Path(folder) / "home", Path(folder) / "recipes", Path(folder) / f"{shape}.yaml"
        write_atomically(grid, GRID.format(name=shape) + SHAPES[shape](cells))
        measured(home, "plan", str(grid), "--recipes", str(recipes))
        here = session(environment(home))
        write_files(home / "files")
        read = [from_json(path.read_bytes()) for path in sorted(recipes.iterdir())]
        found = list(entries(read, home / "files"))
        record(here, found, shape)
        evaluations = sum(entry.kind == "evaluation" for entry in found)
        print(f"{shape}: {evaluations} evaluations, load average {os.getloadavg()[0]:.1f}", flush=True)
        other = Path(folder) / "other.yaml"
        write_atomically(other, GRID.format(name="other") + SHAPES[shape](cells))
        for name, file in (("report", grid), ("again", grid), ("of another grid", other)):
            spent = measured(home, "report", str(file))
            page = home / "reports" / file.stem / "report.html"
            print(
                f"{name}: {spent.wall_s:.1f} s, CPU {spent.cpu_s:.1f} s, peak {spent.peak_mib:.0f} MiB, "
                f"page {page.stat().st_size / 2**20:.1f} MiB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: each in turn")
    asked = parser.parse_args()
    for shape in asked.shape or SHAPES:
        report_of(shape, asked.cells)


if __name__ == "__main__":
    main()
