"""What is known of a recipe before it runs: its work, the size of its files, and the parts that it can resume by.

Everything is computed from shapes.  A training step costs as much as three forward passes (one forward, two for the
gradients).  :data:`FORECASTS` has one row for each kind of recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any

from rd3.datasets import DatasetInfo
from rd3.diffusion.cost import sizes_of
from rd3.diffusion.derivation import derivation_of
from rd3.methods import METHODS
from rd3.models import Cost
from rd3.planning.cost import TRAIN_FACTOR, Work, extent, forward_cost
from rd3.recipe import (
    BackboneRecipe,
    DerivedRecipe,
    EvaluationRecipe,
    Key,
    Recipe,
    RobustnessRecipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
    TrainingDynamicsRecipe,
)

Parent = Callable[[Key], Any]
"""The recipe of a parent, by its key; raises :class:`LookupError` if it is unknown."""

FIXED = 6_000
"""Bytes of the ledger entry, manifest and result of any recipe."""
ROW = 22
"""Bytes per epoch of a curve, measured on curves of 400 epochs."""
SHEET_IMAGES = 100
"""Maximum number of images on a contact sheet, which PNG hardly compresses."""
WITH_TILES = 1.3
"""Factor on the size of channel statistics to include those of tiles: 1.1 to 1.4 for most networks."""


@dataclass(frozen=True)
class Forecast:
    """What planning computes for recipes of one kind."""

    work: Callable[[Any, DatasetInfo, Parent], Work]
    """Compute and sequential steps of a recipe on a dataset; none for an imported one."""
    file_bytes: Callable[[Any, DatasetInfo, Parent], int]
    """Size of its own files in bytes, beside what every recipe has (``FIXED``)."""
    parts: Callable[[Any, DatasetInfo], int] = lambda recipe, info: 1
    """Number of parts that are kept when it is interrupted."""
    same_work: Callable[[Any, Parent], Hashable] = lambda recipe, parent: recipe.key
    """Recipes with equal values have equal work; worth saying where many differ in a seed only."""


def work(recipe: Recipe, info: DatasetInfo, parent: Parent) -> Work:
    """The work of a recipe on a dataset."""
    return FORECASTS[type(recipe)].work(recipe, info, parent)


def artifact_bytes(recipe: Recipe, info: DatasetInfo, parent: Parent) -> int:
    """Bytes of a finished recipe: exact to a few per cent for teachers and sets, rough for statistics.

    Does not include the tracking server's tables.
    """
    return FIXED + FORECASTS[type(recipe)].file_bytes(recipe, info, parent)


def _forward(network: str, recipe: Recipe, info: DatasetInfo) -> Cost:
    """Cost of one forward pass of an image."""
    return forward_cost(network, info.num_classes, recipe.resolution)


def _training_work(recipe: TeacherRecipe | TrainingDynamicsRecipe, info: DatasetInfo, _parent: Parent) -> Work:
    if recipe.training is None:  # an import: nothing is trained
        return Work()
    epochs, batch = recipe.training.epochs, recipe.training.batch_size
    tested = info.test_count if isinstance(recipe, TeacherRecipe) else 0
    cost = (TRAIN_FACTOR * epochs * info.train_count + tested) * _forward(recipe.network, recipe, info)
    steps = epochs * math.ceil(info.train_count / batch)
    return Work(cost, steps, recipe.precision or "fp32", ((recipe.network, cost),))


def _teacher_bytes(recipe: TeacherRecipe, info: DatasetInfo, _parent: Parent) -> int:
    return 4 * extent(recipe.network, info.num_classes, recipe.resolution).values


def _dynamics_bytes(recipe: TrainingDynamicsRecipe, info: DatasetInfo, _parent: Parent) -> int:
    return 8 * recipe.training.epochs * info.train_count  # two numbers of four bytes


def _epochs(recipe: TeacherRecipe | TrainingDynamicsRecipe, _info: DatasetInfo) -> int:
    return recipe.training.epochs if recipe.training is not None else 1


def _statistics_work(recipe: StatisticsRecipe, info: DatasetInfo, parent: Parent) -> Work:
    network = parent(recipe.teacher).network
    cost = info.train_count * _forward(network, recipe, info)
    batches = math.ceil(info.train_count / recipe.collection.batch_size)
    return Work(cost, batches, networks=((network, cost),))  # computing the moments is negligible


def _statistics_bytes(recipe: StatisticsRecipe, info: DatasetInfo, parent: Parent) -> int:
    channels = extent(parent(recipe.teacher).network, info.num_classes, recipe.resolution).channels
    return round(WITH_TILES * 8 * (info.num_classes + 1) * channels)


def _backbone_work(recipe: BackboneRecipe, info: DatasetInfo, _parent: Parent) -> Work:
    sizes = sizes_of(recipe)
    stages = ((recipe.training, sizes.forward), (recipe.autoencoder, sizes.autoencoder))
    cost, steps = Cost(), 0
    for training, forward in stages:
        if training is not None:  # an import is not trained
            cost = cost + TRAIN_FACTOR * training.epochs * info.train_count * forward
            steps += training.epochs * math.ceil(info.train_count / training.batch_size)
    return Work(cost, steps, recipe.precision or "fp32")


def _backbone_bytes(recipe: BackboneRecipe, _info: DatasetInfo, _parent: Parent) -> int:
    return sizes_of(recipe).file_bytes


def _backbone_epochs(recipe: BackboneRecipe, _info: DatasetInfo) -> int:
    return sum(stage.epochs for stage in (recipe.training, recipe.autoencoder) if stage is not None) or 1


def _derived_work(recipe: DerivedRecipe, info: DatasetInfo, parent: Parent) -> Work:
    derivation, settings = derivation_of(recipe)
    return Work(derivation.cost(settings, info, sizes_of(parent(recipe.backbone)).forward))


def _derived_bytes(recipe: DerivedRecipe, info: DatasetInfo, parent: Parent) -> int:
    derivation, settings = derivation_of(recipe)
    return derivation.file_bytes(settings, info, parent(recipe.backbone))


def _set_work(recipe: SetRecipe, info: DatasetInfo, parent: Parent) -> Work:
    if recipe.imported:
        return Work()

    method = METHODS.get(recipe.method)()

    def cost(of: Collection[Key]) -> Cost:
        """Cost of the forward and backward passes through these networks."""
        free = Cost()
        return method.cost(recipe, info, lambda key: _pass(parent(key), recipe, info) if key in of else free)

    iterations = recipe.settings.get("iterations", 0)
    steps = iterations * len(method.blocks(recipe, info)) if iterations else 0
    each = ((parent(key).network, cost([key])) for key in recipe.teachers)
    return Work(
        cost([*recipe.teachers, *recipe.backbones]),
        steps,
        recipe.precision,
        tuple(one for one in each if one[1] != Cost()),
    )


def _pass(network: TeacherRecipe | BackboneRecipe, recipe: SetRecipe, info: DatasetInfo) -> Cost:
    """Cost of one image's forward pass through a parent of a set."""
    return sizes_of(network).forward if isinstance(network, BackboneRecipe) else _forward(network.network, recipe, info)


def _set_bytes(recipe: SetRecipe, info: DatasetInfo, _parent: Parent) -> int:
    count = recipe.ipc * info.num_classes
    return (count + min(count, SHEET_IMAGES)) * 3 * recipe.resolution**2


def _blocks(recipe: SetRecipe, info: DatasetInfo) -> int:
    return 1 if recipe.imported else len(METHODS.get(recipe.method)().blocks(recipe, info))


def _evaluation_work(recipe: EvaluationRecipe, info: DatasetInfo, parent: Parent) -> Work:
    def passes(network: str, images: int) -> tuple[str, Cost]:
        return network, images * _forward(network, recipe, info)

    protocol, set_size = recipe.protocol, parent(recipe.set).ipc * info.num_classes
    tested = info.test_count if recipe.tested_on == "test" else info.train_count // 10
    factor = TRAIN_FACTOR + (1 if protocol.extra_student_forward else 0)
    seen = protocol.epochs * set_size
    labelled = set_size if protocol.soft_labels == "once" else seen
    tests = tested * (1 + len(protocol.test_epochs))
    networks = (
        passes(recipe.student, factor * seen + tests),
        *(passes(parent(key).network, labelled) for key in recipe.teachers),
    )
    steps = protocol.epochs * math.ceil(set_size / protocol.batch_size)
    return Work(sum((cost for _name, cost in networks), Cost()), steps, protocol.precision, networks)


def _evaluation_bytes(recipe: EvaluationRecipe, _info: DatasetInfo, _parent: Parent) -> int:
    return ROW * recipe.protocol.epochs


def _but_for_seeds(recipe: EvaluationRecipe, parent: Parent) -> Hashable:
    """What evaluations that differ in their seeds share; comparing protocols by their fields would take too long."""
    return id(recipe.protocol), recipe.student, recipe.teachers, parent(recipe.set).ipc, recipe.data.name


def _robustness_work(recipe: RobustnessRecipe, info: DatasetInfo, parent: Parent) -> Work:
    """Passes over the test images for each corruption and severity, and over validation images for a temperature."""
    tested, validation = info.test_count, info.train_count // 10
    images = (tested if recipe.tested_on == "test" else validation) * (1 + 5 * len(recipe.corruptions)) + validation
    evaluation = parent(recipe.evaluation)
    cost = images * _forward(evaluation.student, recipe, info)
    return Work(cost, 0, evaluation.protocol.precision, ((evaluation.student, cost),))


def _robustness_bytes(recipe: RobustnessRecipe, _info: DatasetInfo, _parent: Parent) -> int:
    return 2_000 + 100 * len(recipe.corruptions)


FORECASTS: dict[type[Recipe], Forecast] = {
    TeacherRecipe: Forecast(_training_work, _teacher_bytes, parts=_epochs),
    TrainingDynamicsRecipe: Forecast(_training_work, _dynamics_bytes, parts=_epochs),
    StatisticsRecipe: Forecast(_statistics_work, _statistics_bytes),
    BackboneRecipe: Forecast(_backbone_work, _backbone_bytes, parts=_backbone_epochs),
    DerivedRecipe: Forecast(_derived_work, _derived_bytes),
    SetRecipe: Forecast(_set_work, _set_bytes, parts=_blocks),
    EvaluationRecipe: Forecast(_evaluation_work, _evaluation_bytes, same_work=_but_for_seeds),
    RobustnessRecipe: Forecast(_robustness_work, _robustness_bytes),
}
