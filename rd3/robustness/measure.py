"""Measure the student of an evaluation: its calibration, and its accuracy on corrupted test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rd3.device import repeatable_kernels, usable_device
from rd3.errors import DataMissing
from rd3.evaluation.kept import load_student
from rd3.evaluation.student import Progress, Tester
from rd3.recipe import EvaluationRecipe, RobustnessRecipe, recipe_of_kind
from rd3.robustness.calibration import calibration, fitted_temperature
from rd3.robustness.corruptions import SEVERITIES, corrupted, corruption
from rd3.stats import mean
from rd3.stopwatch import Stopwatch
from rd3.store import STUDENT, existing

if TYPE_CHECKING:
    from rd3.datasets import Dataset, Split
    from rd3.store import ReadableStore

RESULT = "robustness.json"


def measure(
    recipe: RobustnessRecipe, store: ReadableStore, dataset: Dataset, out: Path, *, device: str, progress: Progress
) -> dict[str, Any]:
    """Measure a kept student, write ``robustness.json`` to ``out`` and return the scalar figures.

    The evaluation is in ``store``.  Corruptions are applied to the test images, before the protocol's ``test_resize``.
    A temperature is fitted on the validation images, which are training images that no part of the test uses; not for
    students that are tested on them.  Clean images give the evaluation's count of correct predictions on the same kind
    of device; on another, rounding may change a few.  Raises :class:`DataMissing` if the evaluation has no weights.
    """
    entry = existing(store, "evaluation", recipe.evaluation)
    if STUDENT not in entry.files:
        message = f"Evaluation {recipe.evaluation[:12]} was stored without the weights of its student."
        fix = "run its grid with `keep_students: true`, or its recipe and this one with `python -m rd3.run`"
        raise DataMissing(message, fix)
    stopwatch = Stopwatch()
    for name in recipe.corruptions:
        corruption(name)
    evaluation, precision = recipe_of_kind(entry.recipe, EvaluationRecipe), entry.result["ran_precision"]
    folder, used = store.fetch("evaluation", recipe.evaluation), usable_device(device)
    student = load_student(folder, evaluation, dataset.info, device=used, precision=precision)
    tester = Tester(student, dataset, used, precision, evaluation.protocol.test_resize)
    with repeatable_kernels():
        found = _figures(tester, recipe, progress)
    (out / RESULT).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)} | stopwatch.spent()


def _figures(tester: Tester, recipe: RobustnessRecipe, progress: Progress) -> dict[str, Any]:
    """All figures of a student; accuracies in per cent, of whole splits."""
    corruptions = [(name, severity) for name in recipe.corruptions for severity in SEVERITIES]
    passes = 1 + len(corruptions)
    split = recipe.tested_on
    logits, labels = _logits(tester, recipe, split), tester.dataset.labels(split)
    progress(1 / passes, f"test images, pass 1/{passes}")
    found: dict[str, Any] = {"tested_on": split, "tested": len(labels), "correct": _correct(logits, labels)}
    found["top1_pct"] = 100 * found["correct"] / len(labels)
    found |= calibration(logits, labels, _temperature(tester, recipe))
    corrupted_correct: dict[str, list[int]] = {}
    for number, (name, severity) in enumerate(corruptions, 2):
        right = _correct(_logits(tester, recipe, split, name, severity), labels)
        corrupted_correct.setdefault(name, []).append(right)
        progress(number / passes, f"{name} {severity}, pass {number}/{passes}")
    return found | _accuracies(corrupted_correct, len(labels))


def _accuracies(correct: dict[str, list[int]], tested: int) -> dict[str, Any]:
    """Accuracies by corruption, by severity and of all, each with equal weights, from counts by severity."""
    if not correct:
        return {}
    accuracies = {name: [100 * right / tested for right in counts] for name, counts in correct.items()}
    by_severity = {
        f"severity_{severity}_top1_pct": mean([one[severity - 1] for one in accuracies.values()])
        for severity in SEVERITIES
    }
    return {
        "corrupted_top1_pct": mean([mean(one) for one in accuracies.values()]),
        **by_severity,
        **{f"{name}_top1_pct": mean(one) for name, one in accuracies.items()},
        "corrupted_correct": correct,
    }


def _correct(logits: np.ndarray, labels: np.ndarray) -> int:
    return int((logits.argmax(axis=1) == labels).sum())


def _temperature(tester: Tester, recipe: RobustnessRecipe) -> float | None:
    """Fitted on the validation images; None if the student is tested on them, or there is nothing to fit."""
    labels = tester.dataset.labels("validation")
    if recipe.tested_on == "validation" or not len(labels):
        return None
    return fitted_temperature(_logits(tester, recipe, "validation"), labels)


def _logits(tester: Tester, recipe: RobustnessRecipe, split: Split, name: str = "", severity: int = 0) -> np.ndarray:
    """(N, C) float32 logits of a whole split, corrupted if ``severity`` is not 0."""

    def corrupt(images: torch.Tensor, places: list[int]) -> torch.Tensor:
        return corrupted(images, name, severity, places, recipe.seed)

    return np.asarray(torch.cat([logits.float().cpu() for logits in tester.logits(split, corrupt)]))
