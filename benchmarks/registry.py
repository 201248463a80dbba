"""The cases.  A case is imported when it runs, never before."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.rows import Row


class Case(NamedTuple):
    """One module of this package, with ``run(bench) -> list[Row]``."""

    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    in_quick: bool = True
    """Whether ``--quick`` runs it unless it is named."""

    def runs(self, device: str, quick: bool) -> bool:
        """Whether it runs on this type of device if no case is named."""
        return device in self.devices and (self.in_quick or not quick)


CASES = {
    "post_evaluation": Case("a training step with a teacher, beside the published loop's structure"),
    "recovery": Case("an iteration of SRe2L, optimisation by optimisation, and several blocks at once"),
    "patch_scoring": Case("a crop scored by RDED"),
    "shared_views": Case("students that share views and teachers' logits, beside each alone"),
    "cached_logits": Case("students that read cached teacher logits, beside students with a teacher"),
    "layout": Case("a training step with weights channels last, beside weights as they are built"),
    "compiled": Case("a training step compiled by torch, beside the same step as it is", in_quick=False),
    "sampling": Case("an image from a diffusion model, in batches beside one at a time"),
    "cell": Case("a CIFAR-10 IPC 10 cell by parts: set, training, test", devices=("cpu",), in_quick=False),
}


def run(name: str, bench: Bench) -> list[Row]:
    """The rows of a case."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{name}").run(bench)
    return rows
