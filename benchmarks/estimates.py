"""Do estimates hold?  Estimated and measured times of thirty evaluations on the digits, after a calibration.

    python benchmarks/estimates.py [--seconds 20]

Five students, IPC 1, 5 and 10, and two protocols (40 epochs at bf16, 20 at fp32).  Times are process seconds of one
thread for a whole recipe: opening the data, reading its parents, training, testing, writing.  They do not include
tracking and scheduling, which `benchmarks/overhead.py` measures.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.scale import Row, planned, show
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import expand
from pipelines.grid.files import parse_grid
from rd3.datasets import Roots
from rd3.device import configure_torch
from rd3.hardware import processor
from rd3.perform import perform
from rd3.planning.calibration import Calibration, calibrate
from rd3.planning.cost import Rates, shipped_rates
from rd3.recipe import EvaluationRecipe, SetRecipe
from rd3.store import FolderStore

GRID = """
methods: [random]
datasets: [digits]
ipc: [1, 5, 10]
teacher: resnet18_w16
students: [resnet18_w16, convnet_w32, convnet, wrn_16_2, shufflenet_v2_x0_5]
protocols: [{rd3-reduced: {epochs: 40, precision: bf16}}, {rd3-reduced: {epochs: 20, precision: fp32}}]
student_seeds: [0]
"""
WITHIN = 1.5
"""Factor by which an estimate may be off, either way."""


def estimate_rows(calibration: Calibration, home: Path) -> list[Row]:
    """A row per cell: times estimated from the calibration and from the rates in RD3, and the measured time."""
    roots = Roots(None, home)
    expansion = expand(parse_grid(GRID, "estimates"), Catalog(roots))

    def estimated(rates: Rates) -> dict[str, float]:
        return {item.key: item.cost_s for item in planned(expansion, rates=rates).items if item.key is not None}

    calibrated = estimated(calibration.rates)
    shipped = estimated(shipped_rates("cpu", processor().bf16))
    store = FolderStore(home / "store")
    rows: list[Row] = []
    for key, recipe in expansion.recipes.items():
        if recipe.kind == "evaluation" and not rows:  # a worker's first one loads modules
            perform(recipe, store, roots, home / "warm" / key)
        began = time.process_time()
        entry = perform(recipe, store, roots, home / "work" / key)
        took = time.process_time() - began
        store.put(entry, home / "work" / key / "result")
        if isinstance(recipe, EvaluationRecipe):
            made = expansion.recipes[recipe.set]
            assert isinstance(made, SetRecipe)
            rows.append(
                {
                    "student": recipe.student,
                    "images": 10 * made.ipc,
                    "epochs": recipe.protocol.epochs,
                    "precision": recipe.protocol.precision,
                    "measured_s": round(took, 2),
                    "around_s": round(took - entry.result["process_s"], 2),
                    "calibrated_s": round(calibrated[key], 2),
                    "shipped_s": round(shipped[key], 2),
                    "measured/calibrated": round(took / calibrated[key], 2),
                    "measured/shipped": round(took / shipped[key], 2),
                }
            )
    return rows


def main(seconds: float) -> None:
    configure_torch(1)
    calibration = calibrate("cpu", seconds=seconds)
    print(calibration.model_dump_json(exclude={"networks"}), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        rows = estimate_rows(calibration, Path(folder))
    show(rows)
    for column in ("measured/calibrated", "measured/shipped"):
        ratios = [row[column] for row in rows]
        share = sum(abs(math.log(ratio)) <= math.log(WITHIN) for ratio in ratios) / len(ratios)
        print(f"{column}: {100 * share:.0f} % within x{WITHIN}, median {median(ratios)}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    main(parser.parse_args().seconds)
