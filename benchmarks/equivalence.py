"""Do bf16 and fp32 evaluations agree?  Two one-sided t-tests over paired student seeds.

    python benchmarks/equivalence.py digits STORE [--workers 2] [--minutes 30]
    python benchmarks/equivalence.py cifar10 STORE

Everything was fixed before the runs: a random set (set seed 0), student and teacher one network, the
protocol and the student seeds below, margin 1 point of top-1 accuracy.  A pair shares initial weights, order and views.
The same command continues after an interruption or the end of --minutes; the verdict follows the last pair.

CIFAR-10 needs RD3_DATA, and the teacher in the ledger of RD3_HOME under its role (`rd3 plan cifar10` says how).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipelines.byhand import teacher_of
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import expanded
from pipelines.settings import session
from pipelines.transfer.results import export_results, write_recipes
from rd3.campaign import command
from rd3.recipe import EvaluationRecipe, Recipe
from rd3.stats import equivalence, paired_difference
from rd3.store import FolderStore

MARGIN_PCT = 1.0
"""Equivalence margin, in points of top-1 accuracy."""
ALPHA = 0.05
"""Level of each of the two tests."""


class Registered(NamedTuple):
    """One comparison, fixed before its first run."""

    teacher: str
    ipc: int
    preset: str
    seeds: range


REGISTERED = {
    "digits": Registered("resnet18_w16", 10, "rd3-reduced", range(1000, 1120)),
    "cifar10": Registered("resnet18-895", 1, "rd3", range(1000, 1030)),
}


def pairs_of(dataset: str) -> tuple[list[Recipe], list[tuple[EvaluationRecipe, EvaluationRecipe]]]:
    """The parents of all evaluations, and a pair (bf16, fp32) for each student seed."""
    asked = REGISTERED[dataset]
    teacher_of(dataset, asked.teacher, Catalog.of(session()))  # raises for one that must be imported
    grid = {
        "methods": ["random"],
        "datasets": [dataset],
        "ipc": [asked.ipc],
        "teacher": asked.teacher,
        "protocols": [{asked.preset: {"precision": precision}} for precision in ("bf16", "fp32")],
        "student_seeds": list(asked.seeds),
    }
    recipes = expanded(grid, session()).recipes.values()
    evaluations = [recipe for recipe in recipes if isinstance(recipe, EvaluationRecipe)]
    parents = [recipe for recipe in recipes if not isinstance(recipe, EvaluationRecipe)]
    count = len(asked.seeds)
    return parents, list(zip(evaluations[:count], evaluations[count:], strict=True))


def main(dataset: str, store: Path, options: list[str]) -> int:
    """Run what is missing; print every finished pair, and the verdict once all are; returns the exit code."""
    parents, pairs = pairs_of(dataset)
    here = session()
    export_results(parents, store, here, teachers=True)
    trained = [one for one in parents if getattr(one, "weights", None) is None]
    with tempfile.TemporaryDirectory() as folder:
        write_recipes([*trained, *(one for pair in pairs for one in pair)], Path(folder))
        roots = ["--home", str(here.home)] + (["--data", str(here.roots.data)] if here.roots.data else [])
        code = command.main([folder, "--store", str(store), "--out", f"{store}-scratch", *roots, *options])
    entries = FolderStore(store.absolute())
    scores = []
    for seed, pair in zip(REGISTERED[dataset].seeds, pairs, strict=True):
        found = [entry for one in pair if (entry := entries.find("evaluation", one.key)) is not None]
        if len(found) == len(pair):
            bf16, fp32 = (entry.result["top1_pct"] for entry in found)
            scores.append((bf16, fp32))
            print(f"seed {seed}: bf16 {bf16:.2f}  fp32 {fp32:.2f}  difference {bf16 - fp32:+.2f}")
    if len(scores) < len(pairs):
        print(f"{len(scores)} of {len(pairs)} pairs; no verdict before all are there")
    else:
        sides = [bf16 for bf16, _ in scores], [fp32 for _, fp32 in scores]
        apart, p_value = paired_difference(*sides, confidence=1 - 2 * ALPHA), equivalence(*sides, MARGIN_PCT)
        print(
            f"mean difference {apart.mean:+.2f}, {1 - 2 * ALPHA:.0%} interval {apart.low:+.2f} to {apart.high:+.2f}, "
            f"p = {p_value:.2g}: {'' if p_value < ALPHA else 'not shown to be '}equivalent, margin {MARGIN_PCT:g}"
        )
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=sorted(REGISTERED))
    parser.add_argument("store", type=Path, help="results are kept here")
    chosen, rest = parser.parse_known_args()
    sys.exit(main(chosen.dataset, chosen.store, rest))
