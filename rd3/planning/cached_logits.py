"""What caching teacher logits on disk would save a run, computed from the recipes before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rd3.datasets import DatasetInfo
from rd3.evaluation.budget import image_steps, logits_bytes
from rd3.evaluation.packing import Views
from rd3.evaluation.sharing import asks_teachers
from rd3.models import Cost
from rd3.planning.cost import Rates, Work
from rd3.recipe import EvaluationRecipe, Key, Recipe


class LogitsForecast(NamedTuple):
    """Logits that at least two evaluations of a run share, if they fit the disk budget."""

    files: int = 0
    """One for each value of the views."""
    evaluations: int = 0
    """Evaluations that share them."""
    readers: int = 0
    """Evaluations that read what another one has computed."""
    images: int = 0
    """Images that teachers label less, each counted once for each teacher, than if every evaluation asked them."""
    saved_s: float = 0.0
    """Device time of labelling these, in seconds.  Packs save part of it without a cache."""
    disk_bytes: int = 0
    """All files together; a run never uses more than the budget."""
    too_large: int = 0
    """Evaluations that share logits which exceed the budget."""


def forecast_logits(
    recipes: Iterable[Recipe],
    budget_bytes: int,
    *,
    work: Callable[[Recipe], Work],
    parents: Mapping[Key, Any],
    infos: Mapping[str, DatasetInfo],
    rates: Rates,
) -> LogitsForecast:
    """The forecast for the recipes that run; evaluations whose set or dataset is unknown are left out."""

    def of_group(group: list[EvaluationRecipe]) -> LogitsForecast:
        """The forecast for evaluations that share logits."""
        first, protocol, classes = group[0], group[0].protocol, infos[group[0].data.name].num_classes
        images, teachers, readers = parents[first.set].ipc * classes, len(first.teachers), len(group) - 1
        precision = rates.auto if protocol.precision == "auto" else protocol.precision
        size = logits_bytes(protocol, images, classes, teachers, precision)
        if size > budget_bytes:
            return LogitsForecast(too_large=len(group))
        labelled = readers * teachers * image_steps(protocol, images)
        return LogitsForecast(1, len(group), readers, labelled, readers * _teachers_s(work(first), rates), size)

    groups: dict[str, list[EvaluationRecipe]] = {}
    for one in recipes:
        if isinstance(one, EvaluationRecipe) and asks_teachers(one) and one.set in parents and one.data.name in infos:
            groups.setdefault(Views.of(one).key, []).append(one)
    shared = [of_group(group) for group in groups.values() if len(group) > 1]
    return LogitsForecast(*map(sum, zip(LogitsForecast(), *shared, strict=True)))


def _teachers_s(work: Work, rates: Rates) -> float:
    """Seconds of the teachers' passes in the work of an evaluation, whose first network is the student."""
    teachers = work.networks[1:]
    cost = sum((cost for _name, cost in teachers), Cost())
    return rates.seconds(Work(cost, 0, work.precision, teachers)) - rates.start_s
