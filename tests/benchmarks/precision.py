"""Do bf16 and fp32 evaluation agree?  Two one-sided tests over paired student seeds, on the digits.

    python tests/benchmarks/precision.py [--seeds 40] [--margin 1.0]

Fixed beforehand: random, IPC 10, resnet18_w16 teacher and student, protocol rd3-reduced, seeds 0 .. n-1; a pair shares
its initial weights, order and views.  Prints every pair, the mean difference, its interval and the verdict.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from subject import Subject

from pipelines.byhand import run_recipes
from rd3.stats import equivalence
from tracking.ledger import Ledger


def main(seeds: int, margin: float, home: Path) -> None:
    subject = Subject(home)
    pairs = [
        tuple(subject.evaluation("rd3-reduced", seed, precision=precision) for precision in ("bf16", "fp32"))
        for seed in range(seeds)
    ]
    outcome = run_recipes([*subject.parents, *(recipe for pair in pairs for recipe in pair)], subject.session)
    if outcome.exit_code:
        raise SystemExit(f"{len(outcome.failed)} failed: {outcome.failed[:3]}")
    ledger = Ledger(subject.session.place.artifacts)
    scores = [tuple(ledger.find("evaluation", one.key).result["top1_pct"] for one in pair) for pair in pairs]
    for seed, (bf16, fp32) in enumerate(scores):
        print(f"seed {seed}: bf16 {bf16:.2f}  fp32 {fp32:.2f}  difference {bf16 - fp32:+.2f}")
    print(equivalence([one for one, _two in scores], [two for _one, two in scores], margin))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--margin", type=float, default=1.0, help="points")
    parser.add_argument("--home", type=Path, help="keep the results here (default: a temporary folder)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(chosen.seeds, chosen.margin, (chosen.home or Path(folder)).absolute())
