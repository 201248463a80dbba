"""Time of planning 10,000 cells: empty ledger, full ledger, and a run in which everything is reused.

    python benchmarks/planning.py [CELLS]

Each time is the wall time of one `rd3` command from start to exit, in a process of its own, on the digits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def timed(home: Path, *words: str) -> tuple[float, str]:
    """Wall seconds and standard output of one command."""
    start = time.perf_counter()
    done = subprocess.run(
        [Path(sys.executable).parent / "rd3", *words],
        env={**os.environ, "RD3_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, done.stdout


def fill(home: Path, recipes: Path) -> int:
    """Write a ledger entry for every recipe, without fsync; all share one small artifact.  Returns their number."""
    artifact = home / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "result.json").write_text("{}")
    count = 0
    for path in recipes.iterdir():
        recipe = from_json(path.read_bytes())
        entry = Entry(
            kind=recipe.kind,
            key=recipe.key,
            recipe=recipe.model_dump(mode="json"),
            result={"top1_pct": 50.0, "correct": 170, "tested": 340},
            artifact=artifact.as_uri(),
        )
        target = home / "artifacts" / "by-key" / recipe.kind / f"{recipe.key}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(entry.model_dump(mode="json")))
        count += 1
    return count


def main(cells: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, recipes, grid = Path(folder) / "home", Path(folder) / "recipes", Path(folder) / "planning.yaml"
        write_atomically(grid, GRID.format(seeds=list(range(cells // 30))))
        first, _out = timed(home, "plan", "demo")
        print(f"first plan on this home, which opens the data: {first:.1f} s")
        empty, out = timed(home, "plan", str(grid), "--json")
        found = json.loads(out)["cells"]
        print(f"{found} cells, empty ledger: plan {empty:.1f} s")
        timed(home, "plan", str(grid), "--recipes", str(recipes))
        print(f"{fill(home, recipes)} ledger entries written")
        full, out = timed(home, "plan", str(grid), "--json")
        totals = json.loads(out)["totals"]
        print(f"full ledger: plan {full:.1f} s ({totals})")
        again, _out = timed(home, "run", str(grid))
        print(f"full ledger: run, everything reused, {again:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
