"""What Ray, ledger and MLflow cost, beside the same evaluations called directly.

    python benchmarks/overhead.py [--epochs 40 --epochs 600] [--count 3]

For each length: `count` evaluations (digits, random IPC 10, resnet18_w16), first in one process without Ray, then as
a grid on Ray, one trial at a time, with other student seeds and as many threads. Both are warm: the grid first runs
one evaluation of one epoch, in which its worker imports torch and MLflow. That, and starting and stopping Ray, cost
time once per run or worker and are reported separately. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import mean

from benchmarks.scale import session_in
from pipelines.engine import trial_log
from pipelines.engine.execute import execute
from pipelines.grid.expand import Expansion, expanded
from pipelines.grid.plan import plan_session
from pipelines.settings import Session
from rd3.datasets import dataset_info
from rd3.device import configure_torch
from rd3.perform import perform
from rd3.recipe import Recipe
from tracking.store import TrackedStore


def run_grid(recipes: list[Recipe], session: Session) -> float:
    """Wall seconds of one run, one trial at a time."""
    infos = {"digits": dataset_info("digits", session.roots)}
    expansion = Expansion(recipes={recipe.key: recipe for recipe in recipes}, infos=infos)
    start = time.perf_counter()
    plan = plan_session(expansion, session)
    outcome = execute(expansion, plan, session, max_concurrent=1, view=False)
    assert outcome.exit_code == 0, outcome.failed
    return time.perf_counter() - start


def main(lengths: list[int], count: int, home: Path) -> None:
    configure_torch(1)
    session = session_in(home)
    store = TrackedStore(session)

    def recipes_of(epochs: int, seeds: range) -> list[Recipe]:
        """Set, teacher, and an evaluation of so many epochs for each student seed."""
        grid = {"methods": ["random"], "datasets": ["digits"], "ipc": [10], "teacher": "resnet18_w16"}
        evaluations = {"protocols": [{"rd3": {"epochs": epochs}}], "student_seeds": list(seeds)}
        return list(expanded(grid | evaluations, session).recipes.values())

    preparing = run_grid(recipes_of(1, range(1)), session)
    print(f"preparing (teacher, set, one short evaluation): {preparing:.1f} s")
    perform(recipes_of(1, range(1, 2))[-1], store, session.roots, home / "direct" / "warm")
    for epochs in lengths:
        direct = []
        for seed, recipe in enumerate(recipes_of(epochs, range(count))[2:]):
            start = time.perf_counter()
            perform(recipe, store, session.roots, home / "direct" / f"{epochs}-{seed}")
            direct.append(time.perf_counter() - start)
        warming = recipes_of(1, range(1000 + epochs, 1001 + epochs))
        measured = recipes_of(epochs, range(1000, 1000 + count))[2:]
        total = run_grid([*warming, *measured], session)
        keys = [recipe.key for recipe in measured]
        done = {
            event["key"]: datetime.fromisoformat(event["time"]).timestamp()
            for event in trial_log.events(home)
            if event["event"] == "done"
        }
        busy = max(done[key] for key in keys) - done[warming[-1].key]
        entries = session.ledger.find_many("evaluation", keys)
        inside = [entries[key].result["wall_s"] for key in keys]
        figures = {
            "epochs": epochs,
            "direct_wall_s": round(mean(direct), 2),
            "grid_wall_s": round(total, 2),
            "evaluation_inside_trial_s": round(mean(inside), 2),
            "overhead_per_evaluation_s": round((busy - sum(direct)) / count, 2),
            "of_which_tracking_and_scheduling_s": round((busy - sum(inside)) / count, 2),
            "once_a_run_and_worker_s": round(total - busy, 2),
            "overhead_per_evaluation_pct": round(100 * (busy - sum(direct)) / sum(direct), 1),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, action="append")
    parser.add_argument("--count", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(chosen.epochs or [40, 600], chosen.count, Path(folder))
