"""One training step with a teacher: KL to soft labels, flip and CutMix, at 224 pixels shuffle and crop as well.

Ours is what ``rd3.evaluation.posteval.train_pack`` does, where the teacher labels several batches at once.  The
reference path is :mod:`benchmarks.published`, with and without the student's extra forward pass in train mode.  Its
DataLoader runs in the same process on a CPU, so that its time counts, and in four processes beside a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from benchmarks.bench import Bench, Job, Row, Work
from benchmarks.published import PublishedLoop
from benchmarks.students import Students, Subject, untrained
from rd3.device import resolve_precision
from rd3.models import forward_cost
from rd3.recipe import EvaluationRecipe

BATCH, TOGETHER, WORKERS = 50, 8, 4
REFERENCES = {"with the extra forward": True, "without the extra forward": False}
CPU_AIMS = {"bf16": (3.0, 2.5), "fp32": (1.5, 1.2)}
GPU_AIMS = {(32, "one student"): (5.0, None), (32, "eight together"): (10.0, None), (224, "one student"): (2.5, None)}
"""Speed-ups to reach, over the reference path with its extra forward pass and without."""


def run(bench: Bench) -> list[Row]:
    """Rows for 32 pixels; on a GPU also for 224, and for eight students together."""
    if bench.on_cpu:
        return _on_cpu(bench)
    return [*on_gpu(bench, 32, {"one student": 1, "eight together": TOGETHER}), *on_gpu(bench, 224, {"one student": 1})]


def _on_cpu(bench: Bench) -> list[Row]:
    """Rows for the precision that ``auto`` resolves to here, which has an aim, and for fp32."""
    subject = Subject(32, bench.network, BATCH)
    usual: str = resolve_precision(bench.device, "auto")
    packs = {precision: [subject.recipe(precision=precision)] for precision in (usual, "fp32")}
    return _rows(bench, subject, packs, {usual: CPU_AIMS[usual]}, reference_steps=2)


def on_gpu(bench: Bench, side: int, counts: dict[str, int]) -> list[Row]:
    """Rows of so many students, each training alone or together with the others."""
    subject = Subject(side, bench.network, BATCH)
    packs = {name: [subject.recipe(seed) for seed in range(count)] for name, count in counts.items()}
    return _rows(bench, subject, packs, {name: GPU_AIMS[side, name] for name in packs}, reference_steps=10)


def _rows(
    bench: Bench,
    subject: Subject,
    packs: dict[str, list[EvaluationRecipe]],
    aims: Mapping[str, tuple[float, float | None]],
    reference_steps: int,
) -> list[Row]:
    """A row for each pack of students beside each reference path, in seconds per step and student."""
    trained = {name: Students(subject, recipes, bench.device) for name, recipes in packs.items()}
    loops = {name: reference(bench, subject, extra) for name, extra in REFERENCES.items()}
    paths: dict[str, Work] = {name: partial(_steps_of_all, one, len(packs[name])) for name, one in trained.items()}
    spent = bench.compare(paths | {name: partial(loop.steps, reference_steps) for name, loop in loops.items()})
    side, rows = subject.info.resolution, []
    note = f"reference: {workers(bench)} DataLoader workers{'; aim: 25 % of peak' if side == 224 else ''}"
    for name, students in trained.items():
        for loop, aim in zip(loops, aims.get(name, (None, None)), strict=True):
            words = f"{subject.network}, {side} px, {name}, {loop}"
            job = Job("post_evaluation", words, "step", subject.batch, subject.batch, step_gflop(subject))
            rows.append(bench.row(job, spent[name], spent[loop], dtype=students.precision, aim=aim, note=note))
    return rows


def _steps_of_all(students: Students, count: int) -> int:
    """Train ``count`` students together; returns the number of their steps, summed over them."""
    return count * students.work()


def reference(bench: Bench, subject: Subject, extra: bool) -> PublishedLoop:
    """The published structure on the same set, with the same networks."""
    return PublishedLoop(
        subject.images,
        subject.labels,
        untrained(subject.info, subject.network, 0).network,
        untrained(subject.info, subject.network, 1).network,
        subject.info,
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
