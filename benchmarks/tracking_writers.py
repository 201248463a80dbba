"""Eight processes write to MLflow at once through ``tracking.runs.runs``: is anything lost, and how fast is it?

    MLFLOW_TRACKING_URI=... python benchmarks/tracking_writers.py [--writers 8] [--runs 5] [--batches 30]

The address is that of a database or a server, whose credentials MLflow finds as usual; a new experiment is created, and
deleted at the end.  Every writer opens and finishes runs as a trial does (parameters, a curve of 100 points per metric,
a small file), and in between logs batches of 100 points as fast as it can.  Afterwards every point is read back.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation
from rd3.store import Entry
from tracking.ledger.faults import without_password
from tracking.place import Place
from tracking.runs.runs import Tracker

POINTS = 100
GREY = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CURVE = [{"epoch": epoch, "loss": 1 / epoch, "lr": 0.1, "train_top1_pct": epoch / 10} for epoch in range(1, 301)]


def recipe(number: int) -> EvaluationRecipe:
    return EvaluationRecipe(
        data=Data(name="digits", fingerprint="f" * 64),
        classes="c" * 64,
        resolution=32,
        set="5" * 64,
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"labels": "hard"}),
        student="resnet18",
        student_seed=number,
        normalisation=GREY,
    )


def write(place: Place, experiment_id: str, number: int, asked: Any, barrier: Any, answers: Any) -> None:
    """One writer; its answer is (seconds of each batch, seconds of begin and finish of each run)."""
    tracker = Tracker(place)
    tracker.client.get_experiment(experiment_id)
    folder = Path(tempfile.mkdtemp(dir=place.home))
    (folder / "result.json").write_text("{}")
    barrier.wait()
    batches, ends = [], []
    for turn in range(asked.runs):
        made = recipe(number * asked.runs + turn)
        start = time.perf_counter()
        run = tracker.begin(made, {"method": "random", "ipc": 1}, experiment_id=experiment_id)
        ends.append(time.perf_counter() - start)
        for batch in range(asked.batches):
            points = [("busy", float(step), step, step) for step in range(batch * POINTS, (batch + 1) * POINTS)]
            start = time.perf_counter()
            tracker.log(run.run_id, points=points)
            batches.append(time.perf_counter() - start)
        entry = Entry.of(made, folder, {"top1_pct": 1.0}, content=None)
        start = time.perf_counter()
        run.finish(entry, folder, curve=CURVE)
        ends[-1] += time.perf_counter() - start
    answers.put((batches, ends))


def check_alive(writers: list[Any]) -> None:
    """End all writers, and the benchmark, if one has failed."""
    if any(writer.exitcode for writer in writers):
        for writer in writers:
            writer.kill()
        raise SystemExit("a writer failed")


def check(tracker: Tracker, experiment_id: str, asked: Any) -> int:
    """Check that every run exists once and is finished, with every point; returns the number of points."""
    runs = tracker.search([experiment_id], {"rd3.kind": "evaluation"})
    keys = {recipe(number).key for number in range(asked.writers * asked.runs)}
    assert {run.data.tags["rd3.key"] for run in runs} == keys and len(runs) == len(keys), "runs are lost or doubled"
    assert {run.info.status for run in runs} == {"FINISHED"}
    count = 0
    for run in runs:
        for name, expected in {"busy": asked.batches * POINTS, "loss": 100, "lr": 100, "train_top1_pct": 100}.items():
            history = tracker.client.get_metric_history(run.info.run_id, name)
            assert len(history) == len({point.step for point in history}) == expected, f"{name} of {run.info.run_id}"
            assert name != "busy" or all(point.value == point.step for point in history)
            count += len(history)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--writers", 8), ("--runs", 5), ("--batches", 30)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"
        place = Place(tracking_uri=uri, artifacts=str(home / "artifacts"), home=home)
        tracker = Tracker(place)
        tracker.check()
        experiment_id = tracker.experiment(f"benchmark {uuid.uuid4().hex[:8]}")
        context = multiprocessing.get_context("spawn")
        barrier, answers = context.Barrier(asked.writers + 1), context.Queue()
        writers = [
            context.Process(target=write, args=(place, experiment_id, number, asked, barrier, answers))
            for number in range(asked.writers)
        ]
        for writer in writers:
            writer.start()
        while barrier.n_waiting < len(writers):
            check_alive(writers)
            time.sleep(0.05)
        barrier.wait()
        start = time.perf_counter()
        said: list[Any] = []
        while len(said) < len(writers):
            with contextlib.suppress(queue.Empty):
                said.append(answers.get(timeout=1.0))
            check_alive(writers)
        wall = time.perf_counter() - start
        for writer in writers:
            writer.join()
        count = check(tracker, experiment_id, asked)
        tracker.client.delete_experiment(experiment_id)
    batches = sorted(second for each, _ends in said for second in each)
    ends = [second for _batches, each in said for second in each]
    print(f"{without_password(uri)}: {asked.writers} writers, {len(ends)} runs, load average {os.getloadavg()[0]:.1f}")
    print(f"{count} points, none lost, in {wall:.1f} s: {count / wall:.0f} metrics/s")
    print(
        f"a batch of {POINTS}: median {statistics.median(batches):.3f} s, "
        f"99 % {batches[int(0.99 * len(batches))]:.2f} s, longest {batches[-1]:.2f} s; "
        f"begin and finish of a run: median {statistics.median(ends):.2f} s, longest {max(ends):.2f} s"
    )


if __name__ == "__main__":
    main()
