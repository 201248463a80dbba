"""What a recipe costs before it runs: floating-point work, and rough seconds from it.

Work is exact arithmetic on the recipe; a multiply-add counts as two, a training step as three forward passes (one
forward, two for the gradients).  Seconds are an estimate from :class:`Rates`, good to a factor of two or so; whoever
runs a grid corrects them by what has finished.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import NamedTuple

from rd3.datasets import DatasetInfo
from rd3.methods import METHODS, Cost
from rd3.recipe import EvaluationRecipe, Key, Recipe, SetRecipe, StatisticsRecipe, TeacherRecipe

TRAIN_FACTOR = 3
"""Forward and backward pass together, in forward passes."""
COLLECT_FACTOR = 2
"""A forward pass with the moments of every layer's input, in forward passes."""
TABLE_CLASSES = (10, 20)
"""The two class counts from which ``flops.json`` is made; work is a straight line in the classes."""


class Work(NamedTuple):
    """Work of one recipe: what a device computes, and how many steps it takes one after the other."""

    flops: float
    steps: int = 0
    precision: str = "fp32"


class Rates(NamedTuple):
    """How fast one slot of a device is: a CPU thread, or a whole GPU.  Rough by nature."""

    name: str
    fp32: float
    """Floating-point operations a second that training reaches."""
    bf16: float
    step_s: float
    """Seconds of every optimiser step that do not depend on the network's width: data, launches, the optimiser."""
    start_s: float
    """Seconds around a recipe: loading data and parents, writing and logging the result."""

    def seconds(self, work: Work) -> float:
        """Process seconds of one recipe on one slot."""
        return (
            self.start_s
            + work.steps * self.step_s
            + work.flops / (self.bf16 if work.precision == "bf16" else self.fp32)
        )


# From ResNet-18 at 32 pixels, batch 50, on a two-core machine with bf16 matrix units (35 and 83 images a second on one
# thread); a small GPU batch keeps an H200 at a few per cent of its peak.  Narrow networks reach less.
CPU_THREAD = Rates("cpu thread", fp32=1.1e11, bf16=2.5e11, step_s=0.02, start_s=1.5)
GPU = Rates("gpu", fp32=2.0e13, bf16=6.0e13, step_s=0.004, start_s=4.0)


@functools.cache
def _table() -> dict[str, dict[str, list[float]]]:
    """Network -> resolution -> (flops without classes, flops per class), as shipped."""
    return json.loads(files("rd3").joinpath("flops.json").read_text(encoding="utf-8"))


@functools.cache
def forward_flops(network: str, num_classes: int, resolution: int) -> float:
    """One image's forward pass, from the shipped table; networks that are not in it are built and counted (torch)."""
    row = _table().get(network, {}).get(str(resolution))
    if row is not None:
        return row[0] + row[1] * num_classes
    from rd3.models import forward_flops as counted

    return counted(network, num_classes, resolution)


def flops_table(names: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """What ``flops.json`` should hold for these networks; after a change of networks write it anew from this."""
    from rd3.models import forward_flops as counted
    from rd3.models import network_info

    few, many = TABLE_CLASSES
    table: dict[str, dict[str, list[float]]] = {}
    for name in names:
        for side in sorted(network_info(name).resolutions):
            slope = (counted(name, many, side) - counted(name, few, side)) / (many - few)
            table.setdefault(name, {})[str(side)] = [counted(name, few, side) - slope * few, slope]
    return table


def work(recipe: Recipe, info: DatasetInfo, network_of: Callable[[Key], str], set_size: int = 0) -> Work:
    """The work of a recipe on a dataset.

    ``network_of(key)`` names a teacher's network; ``set_size`` is |S| of an evaluation's set, in images.
    """
    if isinstance(recipe, TeacherRecipe):
        return _teacher_work(recipe, info)
    if isinstance(recipe, StatisticsRecipe):
        return _statistics_work(recipe, info, network_of)
    if isinstance(recipe, SetRecipe):
        return _set_work(recipe, info, network_of)
    assert isinstance(recipe, EvaluationRecipe)
    return _evaluation_work(recipe, info, network_of, set_size)


def _teacher_work(recipe: TeacherRecipe, info: DatasetInfo) -> Work:
    if recipe.training is None:  # an import: nothing is trained
        return Work(0.0)
    forward = forward_flops(recipe.network, info.num_classes, recipe.resolution)
    epochs, batch = recipe.training.epochs, recipe.training.batch_size
    images = TRAIN_FACTOR * epochs * info.train_count + info.test_count
    return Work(images * forward, epochs * math.ceil(info.train_count / batch), recipe.precision or "fp32")


def _statistics_work(recipe: StatisticsRecipe, info: DatasetInfo, network_of: Callable[[Key], str]) -> Work:
    forward = forward_flops(network_of(recipe.teacher), info.num_classes, recipe.resolution)
    batches = math.ceil(info.train_count / recipe.collection.batch_size)
    return Work(COLLECT_FACTOR * info.train_count * forward, batches)


def _set_work(recipe: SetRecipe, info: DatasetInfo, network_of: Callable[[Key], str]) -> Work:
    if recipe.content is not None:  # an import
        return Work(0.0)

    def teacher_forward(key: Key) -> float:
        return forward_flops(network_of(key), info.num_classes, recipe.resolution)

    cost: Cost = METHODS.get(recipe.method)().cost(recipe, info, teacher_forward)
    return Work(cost.flops, 0, recipe.precision)


def _evaluation_work(
    recipe: EvaluationRecipe, info: DatasetInfo, network_of: Callable[[Key], str], set_size: int
) -> Work:
    protocol = recipe.protocol
    student = forward_flops(recipe.student, info.num_classes, recipe.resolution)
    teachers = sum(forward_flops(network_of(key), info.num_classes, recipe.resolution) for key in recipe.teachers)
    tested = info.test_count if recipe.tested_on == "test" else info.train_count // 10
    passes = TRAIN_FACTOR + (1 if protocol.extra_student_forward else 0)
    seen = protocol.epochs * set_size
    tests = tested * (1 + len(protocol.test_epochs))
    steps = protocol.epochs * math.ceil(set_size / protocol.batch_size)
    return Work(seen * (passes * student + teachers) + tests * student, steps, protocol.precision)
