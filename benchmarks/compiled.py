"""A training step of post-evaluation with student and teacher compiled by torch, beside the same step as it is.

The reference here is our own path, on a GPU with its CUDA graph, which the compiled path has as well.  Compiled kernels
fuse a batch norm with the activation after it, and round differently.  The note has the time that compiling takes.
"""

from __future__ import annotations

import time

from benchmarks.bench import Bench, Job, Row
from benchmarks.post_evaluation import BATCH, step_gflop
from benchmarks.students import Students, Subject


def run(bench: Bench) -> list[Row]:
    """A row for 32 pixels; on a GPU also one for 224."""
    return [_row(bench, side) for side in ([32] if bench.on_cpu else [32, 224])]


def _row(bench: Bench, side: int) -> Row:
    subject = Subject(side, bench.network, BATCH)
    recipe = subject.recipe()
    plain, compiled = (Students(subject, [recipe], bench.device) for _path in range(2))
    began = time.perf_counter()
    compiled.compile()
    compiled.work()  # compiles at the first step
    compiling_s = time.perf_counter() - began
    spent = bench.compare({"compiled": compiled.work, "plain": plain.work})
    note = f"compiled in {compiling_s:.0f} s"
    job = Job("compiled", f"{bench.network}, {side} px, one student", "step", BATCH, BATCH, step_gflop(subject))
    return bench.row(job, spent["compiled"], spent["plain"], dtype=plain.precision, note=note)
