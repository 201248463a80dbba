"""A whole cell by parts: RDED on CIFAR-10 at IPC 10, ResNet-18 as teacher and student, 400 epochs of 100 images.

Measured in turn: one class of the set (a tenth of its work), 40 training steps in batches of 50, 1,000 test images.
The sum is what the whole cell would take: ten classes, 800 steps, 10,000 test images.  The teacher's training and
start-up are left out on both sides.  The teacher is untrained.  Needs RD3_DATA with CIFAR-10.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from benchmarks.bench import Bench, Job, Row, Skipped, as_work
from benchmarks.patch_scoring import CROPS, IMAGES, scoring
from benchmarks.post_evaluation import BATCH, CPU_AIMS, reference
from benchmarks.published import validate
from benchmarks.students import Students, Subject, untrained
from rd3.datasets import Roots, open_dataset
from rd3.device import set_memory_format
from rd3.errors import RD3Error
from rd3.evaluation.student import Tester

CLASSES, STEPS, TESTED = 10, 800, 10_000
"""Classes, training steps and test images of the whole cell."""
MEASURED_STEPS, MEASURED_TESTED = 40, 1000
"""Training steps and test images that are timed."""


def run(bench: Bench) -> list[Row]:
    """Rows of the parts, then of their sum, each extrapolated to the whole cell."""
    data = os.environ.get("RD3_DATA")
    try:  # decoded copies of the data are kept beside the rows
        dataset = open_dataset("cifar10", Roots(Path(data) if data else None, bench.out / "home"))
    except RD3Error as error:
        raise Skipped(f"CIFAR-10 cannot be opened: {error}") from error
    subject = Subject(32, bench.network, BATCH, images=100, dataset=dataset)
    scored = scoring(bench, dataset, teacher=subject.teacher)
    trained, precision = _training(bench, subject)
    spent = {
        "set": _scaled({"ours": [scored.ours_s], "reference": [scored.reference_s]}, IMAGES * CROPS * CLASSES),
        "training": _scaled(trained, STEPS),
        "test": _scaled(_testing(bench, subject, precision), TESTED),
    }
    spent["whole cell"] = {path: [sum(median(part[path]) for part in spent.values())] for path in trained}
    note = "extrapolated from a tenth of the set, 40 steps, 1,000 test images"
    rows = []
    for part, seconds in spent.items():
        job = Job("cell", f"RDED, CIFAR-10, IPC 10, {bench.network}: {part}", "cell", BATCH)
        aim = CPU_AIMS[precision][0] if part == "whole cell" else None
        rows.append(bench.row(job, seconds["ours"], seconds["reference"], dtype=precision, aim=aim, note=note))
    return rows


def _scaled(spent: dict[str, list[float]], units: int) -> dict[str, list[float]]:
    """Seconds of so many units, by path and round."""
    return {path: [units * each for each in seconds] for path, seconds in spent.items()}


def _training(bench: Bench, subject: Subject) -> tuple[dict[str, list[float]], str]:
    """Seconds per step by path, and our precision; 40 steps of each path, in rounds of the steps labelled at once."""
    ours, loop = Students(subject, [subject.recipe()], bench.device), reference(bench, subject, extra=True)
    turn = Bench(bench.device, rounds=max(1, MEASURED_STEPS // ours.chunk), out=bench.out)
    return turn.compare({"ours": ours.work, "reference": lambda: loop.steps(ours.chunk)}), ours.precision


def _testing(bench: Bench, subject: Subject, precision: str) -> dict[str, list[float]]:
    """Seconds per test image by path."""
    student, bare = (untrained(subject.info, subject.network, 1) for _path in range(2))
    set_memory_format(student, precision)
    dataset, normalisation = subject.dataset, subject.info.normalisation
    pictures = dataset.images("test", list(range(MEASURED_TESTED)))
    first = dataset.labels("test")[:MEASURED_TESTED]
    labels = torch.tensor(first)

    def ours() -> None:
        with mock.patch.object(dataset, "labels", return_value=first):  # which decide how many images are tested
            Tester(student, dataset, bench.device, precision).correct_per_class("test", lambda images: None)

    paths = {"ours": ours, "reference": lambda: validate(bare.network, pictures, labels, normalisation, bench.device)}
    works = {name: as_work(path, MEASURED_TESTED) for name, path in paths.items()}
    return Bench(bench.device, rounds=2, out=bench.out).compare(works)
