"""Students that read cached teacher logits, and students that write them, beside students with a teacher.

The reference here is our own path without a cache.  Results are equal bit for bit
(``tests/rd3/evaluation/test_cached_logits.py``).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, Job, Row
from benchmarks.post_evaluation import BATCH
from benchmarks.students import Students, Subject, labelled_at_once
from rd3.evaluation.cached_logits import CachedLogits
from rd3.evaluation.logits_folder import LogitsFolder

IMAGES = 500
SMALL = "convnet_w32"
"""A student that takes much less time than its teacher."""
BUDGET = 10**9
"""Bytes that the cache may take."""


def run(bench: Bench) -> list[Row]:
    """Rows of a student with the teacher's network, and of a small one."""
    with tempfile.TemporaryDirectory() as scratch:
        return [row for student in (bench.network, SMALL) for row in _rows(bench, student, Path(scratch) / student)]


def _rows(bench: Bench, student: str, scratch: Path) -> Iterator[Row]:
    subject = Subject(32, bench.network, BATCH, IMAGES)
    chunk = labelled_at_once(bench.device, BATCH)
    # The epochs that are measured, with the warm-up round, and one more: the test after the last is not reached.
    epochs = math.ceil((bench.rounds + 1) * chunk * BATCH / IMAGES) + 1
    recipe = subject.recipe(student=student, epochs=epochs)
    complete = LogitsFolder(scratch / "complete", BUDGET)
    with Students(subject, [recipe], bench.device, CachedLogits(complete, "", wanted=True)) as first:
        first.label_all()
    written = LogitsFolder(scratch / "written", BUDGET)
    with (
        Students(subject, [recipe], bench.device) as asks,
        Students(subject, [recipe], bench.device, CachedLogits(complete, "", wanted=False)) as reads,
        Students(subject, [recipe], bench.device, CachedLogits(written, "", wanted=True)) as writes,
    ):
        spent = bench.compare({"asks": asks.work, "reads": reads.work, "writes": writes.work})
    size = sum(path.stat().st_size for path in complete.path.glob("*.logits"))
    for name, students in (("reads", reads), ("writes", writes)):
        note = f"the teacher labelled {students.taught} images, {asks.taught} of the reference"
        note += f"; {size} bytes for {epochs * IMAGES} views" if name == "reads" else ""
        words = f"{bench.network} labels, {student} learns, 32 px, {name} logits"
        job = Job("cached_logits", words, "step", BATCH, BATCH)
        yield bench.row(job, spent[name], spent["asks"], dtype=students.precision, note=note)
