"""One training step with a teacher: KL to soft labels, flip and CutMix, at 224 pixels shuffle and crop as well.

Ours is what ``rd3.evaluation.posteval.train_pack`` does, where the teacher labels several batches at once.  The
reference path is :mod:`benchmarks.published`, with and without the student's extra forward pass in train mode.  Its
DataLoader runs in the same process on a CPU, so that its time counts, and in four processes beside a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial

from benchmarks.bench import Bench, Job, layout
from benchmarks.published import PublishedLoop
from benchmarks.rows import Row
from benchmarks.students import Students, Subject, built
from benchmarks.timing import Work
from rd3.device import resolve_precision
from rd3.models import forward_cost

BATCH, TOGETHER, WORKERS = 50, 8, 4
REFERENCES = {"with the extra forward": True, "without the extra forward": False}
AIMS = {
    ("cpu", "bf16"): (3.0, 2.5),
    ("cpu", "fp32"): (1.5, 1.2),
    ("one", "cuda"): (5.0, None),
    ("eight", "cuda"): (10.0, None),
    ("224", "cuda"): (2.5, None),
}
"""Speed-ups to reach, over the reference path with its extra forward pass and without, by what is measured."""


def run(bench: Bench) -> list[Row]:
    """Rows for 32 pixels; on a GPU also for 224, and for eight students together."""
    if bench.on_cpu:
        return _on_cpu(bench)
    return [*_side(bench, 32, {"one student": 1, "eight together": TOGETHER}), *_side(bench, 224, {"one student": 1})]


def _on_cpu(bench: Bench) -> list[Row]:
    """Rows for the precision that ``auto`` resolves to here, and for fp32."""
    subject, usual = Subject(32, bench.network, BATCH), resolve_precision(bench.device, "auto")
    precisions: list[str] = list(dict.fromkeys([usual, "fp32"]))
    ours = {name: Students(subject, [subject.recipe(precision=name)], bench.device) for name in precisions}
    loops = {name: reference(bench, subject, extra) for name, extra in REFERENCES.items()}
    paths: dict[str, Work] = {name: one.work for name, one in ours.items()}
    spent = bench.compare(paths | {name: partial(loop.steps, 2) for name, loop in loops.items()})
    rows = []
    for precision in precisions:
        aims = AIMS["cpu", precision] if precision == usual else (None, None)
        rows += _rows(bench, subject, f"{precision}, ", spent[precision], spent, precision, aims)
    return rows


def _side(bench: Bench, side: int, counts: dict[str, int]) -> list[Row]:
    """Rows of students alone and together on a GPU, in seconds per step and student."""
    subject = Subject(side, bench.network, BATCH)
    ours = {
        name: Students(subject, [subject.recipe(seed) for seed in range(count)], bench.device)
        for name, count in counts.items()
    }
    loops = {name: reference(bench, subject, extra) for name, extra in REFERENCES.items()}
    paths: dict[str, Work] = {name: partial(_steps_of_all, one, counts[name]) for name, one in ours.items()}
    spent = bench.compare(paths | {name: partial(loop.steps, 10) for name, loop in loops.items()})
    rows = []
    for name, one in ours.items():
        aims = AIMS["224" if side == 224 else name.split()[0], "cuda"]
        rows += _rows(bench, subject, f"{name}, ", spent[name], spent, one.precision, aims)
    return rows


def _steps_of_all(students: Students, count: int) -> int:
    """Train ``count`` students together; returns the number of their steps, summed over them."""
    return count * students.work()


def reference(bench: Bench, subject: Subject, extra: bool) -> PublishedLoop:
    """The published structure on the same set, with the same networks."""
    return PublishedLoop(
        subject.images,
        subject.labels,
        built(subject.info, subject.network, 0).network,
        built(subject.info, subject.network, 1).network,
        subject.info.normalisation,
        factor=subject.info.factor,
        batch=subject.batch,
        device=bench.device,
        extra_forward=extra,
        workers=workers(bench),
    )


def workers(bench: Bench) -> int:
    """Number of worker processes of the reference path's DataLoader."""
    return 0 if bench.on_cpu else min(WORKERS, (os.cpu_count() or 1) - 1)


def step_gflop(subject: Subject) -> float:
    """GFLOP of a step: the student's forward and backward pass (three times a forward), the teacher's forward pass."""
    one = forward_cost(subject.network, subject.info.num_classes, subject.info.resolution)
    return 4e-9 * subject.batch * one.flops


def _rows(
    bench: Bench,
    subject: Subject,
    variant: str,
    ours: list[float],
    spent: dict[str, list[float]],
    precision: str,
    aims: Iterable[float | None],
) -> list[Row]:
    """A row for each reference path."""
    side, found = subject.info.resolution, []
    for name, aim in zip(REFERENCES, aims, strict=True):
        words = f"{subject.network}, {side} px, {variant}{name}"
        job = Job("post_evaluation", words, "step", subject.batch, subject.batch, step_gflop(subject))
        note = f"reference: {workers(bench)} DataLoader workers{'; aim: 25 % of peak' if side == 224 else ''}"
        found.append(
            bench.row(job, ours, spent[name], dtype=precision, layout=layout(bench, precision), aim=aim, note=note)
        )
    return found
