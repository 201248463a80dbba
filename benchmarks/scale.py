"""Does the driver keep many devices busy?  The paper's grid in simulated time, and Ray workers that only sleep.

    python benchmarks/scale.py simulate [--devices 1 --devices 8 --devices 64] [--shares 1 --shares 16] [--noise 0.4]
    python benchmarks/scale.py orders [--devices 16] [--shares 1]
    python benchmarks/scale.py workers [--workers 16] [--recipes 1600] [--sleep 0.05]

``simulate`` runs everything of a run (plan, queue, Tune's searcher, driver, ledger in a folder, log lines with the time
left) but the trials.  A trial takes the time that the plan estimates on an H100, times a random factor (``--noise``:
standard deviation of its logarithm) that queue and driver do not know; a pack takes the sum of its members.  ``orders``
compares orders of the queue.  ``workers`` is a real Ray with this many workers, whose trials sleep and import no torch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.driver import Driver
from pipelines.engine.eta import Eta, networks_of
from pipelines.engine.grid_runs import GridRuns
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import Job, TrialEnd
from pipelines.engine.job_builder import JobBuilder
from pipelines.engine.plan_queue import plan_queue
from pipelines.engine.progress import LineView
from pipelines.engine.workers import RayWorkers
from pipelines.grid import queue as queue_module
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.files import parse_grid
from pipelines.grid.plan import Plan, make_plan
from pipelines.grid.queue import Demand, Queued, RecipeQueue, least_wall_s, simulated_wall_s
from pipelines.settings import Session
from rd3.csv_file import csv_text
from rd3.planning.cost import Rates
from rd3.recipe import Key, from_json
from rd3.store import Entry
from tracking.ledger.ledger import Ledger
from tracking.place import Place

Row = dict[str, Any]

# Assumed, not measured: a quarter of the bf16 peak, half of the fp32 peak and of the memory bandwidth, 2 ms per step.
H100 = Rates("H100, assumed", fp32=3.3e13, bf16=2.5e14, bytes=1.7e12, step_s=0.002, start_s=4.0, auto="bf16")


def session_in(home: Path) -> Session:
    """A session with everything below one folder."""
    return Session(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"), home)


class _UnreadData(Catalog):
    """A catalog of what ships with RD3; no data is read."""

    def fingerprint(self, name: str, *, training_only: bool = False) -> str:
        return f"of {name}"


def paper(seeds: int) -> Expansion:
    """The paper's grid with this many student seeds, on data that is never read."""
    text = (Path(__file__).parent / "paper.yaml").read_text()
    seeded = text.replace("student_seeds: [0, 1, 2]", f"student_seeds: {list(range(seeds))}")
    return expand(parse_grid(seeded, "paper"), _UnreadData())


class OnlyImportedTeachers(Ledger):
    """A ledger that has only imported teachers."""

    def __init__(self, imported: set[str]):
        self.imported = imported

    def keys(self, kind: str, start: str = "") -> set[str]:
        return self.imported if kind == "teacher" else set()

    def find_many(self, kind: str, keys: Iterable[str]) -> dict[str, Entry]:
        return {key: Entry(kind=kind, key=key, recipe={}, result={}) for key in keys}


def planned(expansion: Expansion, gpus: int = 1, rates: Rates = H100) -> Plan:
    """The plan of a grid of which only the imported teachers exist."""
    there = OnlyImportedTeachers(set(expansion.imports))
    return make_plan(expansion, there, exists=lambda _entry: True, verify=lambda _entry: None, rates=rates, slots=gpus)


class Cluster:
    """GPUs of which a trial takes a part of one; where none has that much left it waits, as in Ray.

    Trials on one GPU slow each other down as if nothing were gained by sharing it; one alone has all of its speed.
    """

    def __init__(self, gpus: int):
        self.free = [1.0] * gpus
        self.on: list[dict[str, float]] = [{} for _gpu in range(gpus)]
        """Trial to the seconds that it would still need alone."""
        self.parts: dict[str, float] = {}
        self.waiting: list[tuple[str, float, float]] = []
        self.now = self.busy_s = 0.0
        """Simulated seconds since the start; busy time, summed over the GPUs."""

    def start(self, trial: str, part: float, seconds: float) -> None:
        fitting = [gpu for gpu, free in enumerate(self.free) if free >= part - 1e-9]
        if not fitting:
            self.waiting.append((trial, part, seconds))
            return
        gpu = min(fitting, key=lambda gpu: self.free[gpu])
        self.free[gpu] -= part
        self.parts[trial] = part
        self.on[gpu][trial] = seconds

    def next_end(self) -> str:
        """The trial that ends next; what waited for its device starts then."""
        gpu = min((gpu for gpu, trials in enumerate(self.on) if trials), key=self._next_in)
        trial = min(self.on[gpu], key=self.on[gpu].__getitem__)
        self._pass(self._next_in(gpu))
        del self.on[gpu][trial]
        self.free[gpu] += self.parts.pop(trial)
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            self.start(*one)
        return trial

    def _next_in(self, gpu: int) -> float:
        """Seconds until the next trial of a GPU ends."""
        return min(self.on[gpu].values()) * len(self.on[gpu])

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for trials in self.on:
            self.busy_s += seconds if trials else 0.0
            for trial in trials:
                trials[trial] -= seconds / len(trials)


def simulate(driver: Driver, takes_s: dict[Key, float], gpus: int) -> Cluster:
    """Run the driver until it has no more trials, each of which takes the sum of its jobs' times."""
    from ray.tune.search import Searcher

    from pipelines.engine.tune import DriverSearcher

    searcher, cluster = DriverSearcher(driver), Cluster(gpus)
    out: dict[str, list[dict[str, Any]]] = {}
    for number in itertools.count():
        config = searcher.suggest(f"{number:08x}")
        if isinstance(config, dict):
            jobs = out[f"{number:08x}"] = json.loads(config["jobs"])
            cluster.start(f"{number:08x}", config["gpus"], math.fsum(takes_s[queue_key(job)] for job in jobs))
            continue
        if config == Searcher.FINISHED:
            break
        trial = cluster.next_end()
        *others, last = [{"number": place, "end": end_of(job).to_json()} for place, job in enumerate(out.pop(trial))]
        for each in others:
            searcher.on_trial_result(trial, each)
        searcher.on_trial_complete(trial, last)
    unsuccessful = driver.queue.unsuccessful
    assert driver.fatal is None and not unsuccessful, driver.fatal or list(unsuccessful.items())[:3]
    return cluster


def queue_key(job: dict[str, Any]) -> str:
    """The queue's name of what a job makes: a recipe, or a share of one."""
    return job["key"] if job["blocks"] is None else f"{job['key']}-{job['blocks'][0] + 1}of{job['blocks'][1]}"


def end_of(job: dict[str, Any]) -> TrialEnd:
    """The end of a successful trial; a share has no ledger entry."""
    if job["blocks"] is not None:
        return TrialEnd("done")
    recipe = from_json(job["recipe"])
    curve = {"top1_pct": 50.0, "correct": 5000, "tested": 10000, "wall_s": 1.0, "process_s": 1.0}
    entry = Entry(kind=job["kind"], key=job["key"], recipe=recipe.model_dump(mode="json"), result=curve)
    return TrialEnd("done", entry=entry.model_dump(mode="json"))


def drawn(costs_s: Mapping[Key, float], noise: float, seed: int) -> dict[Key, float]:
    """The time that each trial really takes: its estimate times a random factor."""
    draw = random.Random(seed)
    return {key: seconds * math.exp(draw.gauss(0, noise)) for key, seconds in costs_s.items()}


def simulation_rows(devices: list[int], shares: list[int], parts: list[float], seeds: int, noise: float) -> list[Row]:
    """A row per combination, each from a process of its own, so that peak memory is that of one simulation."""
    sizes = zip(*itertools.product(devices, shares, parts, [seeds], [noise]), strict=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        return list(processes.map(one_simulation, *sizes))


def one_simulation(gpus: int, share: int, part: float, seeds: int, noise: float) -> Row:
    """One row: the grid on so many GPUs, with ``share`` trials per set and evaluations on a ``part`` of a GPU.

    The peak memory is that of this process, planning included.
    """
    began = time.process_time()
    expansion = paper(seeds)
    plan = planned(expansion, gpus)
    planned_s = time.process_time() - began
    demands = {kind: Demand(1.0, 1.0) for kind in ("teacher", "statistics", "set", "share")}
    demands["evaluation"] = Demand(1.0, part)
    queue = plan_queue(expansion, plan, (), demands, share)
    takes_s = drawn(queue.costs_s, noise, seed=0)
    known = RecipeQueue(queue.recipes, reused=queue.keys("reused"), demands=demands, after=queue.after, costs_s=takes_s)
    least_s = least_wall_s(known, gpus)
    with tempfile.TemporaryDirectory() as folder:
        session, interrupts = session_in(Path(folder)), Interrupts()
        books = Bookkeeping(session, session.ledger.lease(), interrupts)
        builder = JobBuilder(expansion, queue, books, GridRuns(expansion, books))
        eta = Eta(queue.costs_s, gpus, networks=networks_of(expansion))
        view = LineView("paper", queue, eta, {}, io.StringIO())
        driver = Driver(queue, view, builder, books, FixedCluster(16.0 * gpus, float(gpus)), interrupts)
        began = time.process_time()
        cluster = simulate(driver, takes_s, gpus)
        driver_s, trials = time.process_time() - began, len(queue.keys("done"))
    return {
        "devices": gpus,
        "shares_of_a_set": share,
        "gpu_part_of_an_evaluation": part,
        "cells": plan.cells,
        "trials": trials,
        "device_hours": round(cluster.busy_s / 3600, 1),
        "wall_h": round(cluster.now / 3600, 2),
        "least_h": round(least_s / 3600, 2),
        "least_of_wall_pct": round(100 * least_s / cluster.now, 1),
        "busy_pct": round(100 * cluster.busy_s / (gpus * cluster.now), 1),
        "plan_s": round(planned_s, 2),
        "driver_ms_a_trial": round(1000 * driver_s / trials, 2),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def order_rows(devices: list[int], shares: list[int], seeds: int, noise: float) -> list[Row]:
    """Least / wall in per cent by where ``URGENT`` lies: never (kinds alone), as it is, and always (longest path).

    The least of three draws of the trials' times.
    """
    expansion = paper(seeds)
    plan = planned(expansion)
    demands = dict.fromkeys(("teacher", "statistics", "set", "share", "evaluation"), Demand(1.0, 1.0))
    rows = []
    for share, gpus in itertools.product(shares, devices):
        base = plan_queue(expansion, plan, (), demands, share)
        queued = partial(RecipeQueue, base.recipes, reused=base.keys("reused"), demands=demands, after=base.after)
        row: Row = {"shares_of_a_set": share, "devices": gpus}
        for urgent in (math.inf, 1.0, 0.5, queue_module.URGENT, 0.0):
            reached = []
            for seed in range(3):
                takes_s = drawn(base.costs_s, noise, seed)
                least_s = least_wall_s(queued(costs_s=takes_s), gpus)
                with mock.patch.object(queue_module, "URGENT", urgent):
                    taken_s = simulated_wall_s(queued(costs_s=base.costs_s), takes_s, 1000, gpus)
                reached.append(100 * least_s / taken_s)
            row[f"urgent_{urgent:g}"] = round(min(reached), 1)
        rows.append(row)
    return rows


class FixedCluster(RayWorkers):
    """A fixed number of devices, in place of those that Ray counts."""

    def __init__(self, cpus: float, gpus: float):
        super().__init__()
        self._fixed = cpus, gpus

    def devices(self) -> tuple[float, float]:
        return self._fixed


class Sleeper:
    """A placeholder recipe that is never run."""

    kind = "evaluation"

    def __init__(self, number: int):
        self.key = f"{number:064x}"

    def parents(self) -> tuple[tuple[str, str], ...]:
        return ()

    def label(self) -> str:
        return f"evaluation {self.key[-6:]}"


def worker_rows(workers: int, recipes: int, sleep_s: float) -> list[Row]:
    """The row of one run of ``recipes`` sleeping trials on ``workers`` Ray workers, even if there are fewer cores."""
    import ray

    from pipelines.cluster.ray import _QUIET
    from pipelines.engine import tune as tuned

    class Jobs(JobBuilder):
        """Jobs that name their recipe and no more."""

        def __init__(self) -> None:
            pass

        def job(self, queued: Queued, demand: Demand) -> Job:
            return Job(queued.kind, queued.key, "{}", {}, Place("", "", Path()), "0", None)

    done = TrialEnd("done").to_json()

    def sleeping(_config: dict[str, Any]) -> None:
        from ray import tune

        time.sleep(sleep_s)
        tune.report({"number": 0, "end": done, "torch": "torch" in sys.modules, "process": os.getpid()})

    class Timed(Driver):
        """A driver that notes when trials start and end, where they run, and whether any of them has loaded torch."""

        torch = False
        processes: set[int] = set()
        starts: list[float] = []
        ends: list[float] = []

        def next_config(self, trial_id: str) -> dict[str, Any] | None:
            config = super().next_config(trial_id)
            if config is not None:
                self.starts.append(time.perf_counter())
            return config

        def on_end(self, trial_id: str, result: dict[str, Any] | None) -> None:
            assert result is not None
            self.torch = self.torch or result["torch"]
            self.processes.add(result["process"])
            self.ends.append(time.perf_counter())
            super().on_end(trial_id, result)

    sleepers = [Sleeper(number) for number in range(recipes)]
    queue = RecipeQueue(
        {one.key: one for one in sleepers}, demands={"evaluation": Demand(1.0)},
        costs_s={one.key: sleep_s for one in sleepers},
    )  # fmt: skip
    view = LineView("sleepers", queue, Eta(queue.costs_s, workers), {}, io.StringIO())
    cluster = FixedCluster(float(workers), 0.0)
    driver = Timed(queue, view, Jobs(), cast(Bookkeeping, None), cluster, Interrupts())
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        with mock.patch.object(tuned, "run_trial", sleeping):
            cpu, wall = time.process_time(), time.perf_counter()
            tuned.run_queue(driver, Path(folder))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        ray.shutdown()
    assert len(queue.keys("done")) == recipes
    # The last three quarters: by then all workers are up.
    late = driver.ends[recipes // 4 :]
    rate = (len(late) - 1) / (late[-1] - late[0])
    return [
        {
            "workers": workers,
            "trials": recipes,
            "sleep_s": sleep_s,
            "wall_s": round(wall, 1),
            "first_quarter_s": round(driver.ends[recipes // 4] - driver.starts[0], 1),
            "trials_a_second": round(rate, 1),
            "busy_pct": round(100 * rate * sleep_s / workers, 1),
            "driver_cpu_ms_a_trial": round(1000 * cpu / recipes, 1),
            "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "processes": len(driver.processes),
            "a_worker_loaded_torch": driver.torch,
        }
    ]


def show(rows: list[Row]) -> None:
    """Print rows as CSV."""
    sys.stdout.write(csv_text([list(rows[0]), *(list(row.values()) for row in rows)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=("simulate", "orders", "workers"))
    parser.add_argument("--devices", type=int, action="append")
    parser.add_argument("--shares", type=int, action="append")
    parser.add_argument("--part", type=float, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--recipes", type=int, default=1600)
    parser.add_argument("--sleep", type=float, default=0.05)
    chosen = parser.parse_args()
    if chosen.case == "workers":
        show(worker_rows(chosen.workers, chosen.recipes, chosen.sleep))
    elif chosen.case == "orders":
        show(order_rows(chosen.devices or [8, 16, 64], chosen.shares or [1, 16], chosen.seeds, chosen.noise))
    else:
        show(simulation_rows(chosen.devices or [1, 8, 64], chosen.shares or [1, 16], chosen.part or [1.0],
                             chosen.seeds, chosen.noise))  # fmt: skip


if __name__ == "__main__":
    main()
