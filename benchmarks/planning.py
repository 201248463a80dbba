"""Time of planning 10,000 cells: empty ledger, full ledger, and a run in which everything is reused.

    python benchmarks/planning.py [CELLS]

Each time is the wall time of one `rd3` command from start to exit, in a process of its own, on the digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.reporting import measured, write_entries
from rd3.recipe import from_json
from rd3.store import Entry, write_atomically

GRID = """
name: planning
methods: [random, rded, sre2l]
datasets: [digits]
ipc: [1, 2, 3, 5, 10]
teacher: resnet18_w16
protocols: [rd3-reduced]
set_seeds: [0, 1]
student_seeds: {seeds}
"""


def entries(recipes: Path, artifact: Path) -> list[Entry]:
    """A ledger entry for every recipe in a folder; all share one small artifact."""
    artifact.mkdir(parents=True)
    (artifact / "result.json").write_text("{}")
    result = {"top1_pct": 50.0, "correct": 170, "tested": 340}
    found = []
    for path in recipes.iterdir():
        recipe = from_json(path.read_bytes())
        plain = recipe.model_dump(mode="json")
        found.append(Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result=result, artifact=artifact.as_uri()))
    return found


def main(cells: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, recipes, grid = Path(folder) / "home", Path(folder) / "recipes", Path(folder) / "planning.yaml"
        write_atomically(grid, GRID.format(seeds=list(range(cells // 30))))
        first = measured(home, "plan", "demo")
        print(f"first plan on this home, which opens the data: {first.wall_s:.1f} s")
        empty = measured(home, "plan", str(grid), "--json")
        print(f"{json.loads(empty.output)['cells']} cells, empty ledger: plan {empty.wall_s:.1f} s")
        measured(home, "plan", str(grid), "--recipes", str(recipes))
        found = entries(recipes, home / "artifact")
        write_entries(home / "artifacts", found)
        print(f"{len(found)} ledger entries written")
        full = measured(home, "plan", str(grid), "--json")
        print(f"full ledger: plan {full.wall_s:.1f} s ({json.loads(full.output)['totals']})")
        again = measured(home, "run", str(grid))
        print(f"full ledger: run, everything reused, {again.wall_s:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
