"""The remaining time of a running grid, from planned costs and measured times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from pipelines.engine.workers import Workers
from pipelines.grid.queue import Demand, RecipeQueue
from rd3.campaign.running import Running
from rd3.recipe import Key, Recipe, TeacherRecipe

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion

PRIOR_S = 60.0
"""Weight of the planned time in seconds beside measured times: the first recipe of a worker, which loads modules, says
little about recipes that are planned to take hours."""


class Spent(NamedTuple):
    """Planned and actual seconds of some work."""

    planned_s: float = 0.0
    spent_s: float = 0.0


def own_left_s(item: Running, now: float) -> float | None:
    """Remaining seconds of a running recipe by its own pace; None if the pace is unknown."""
    if item.pace is None:
        return None
    seconds, done = item.pace
    return max(0.0, (1.0 - item.fraction) * seconds / done - (now - item.reported))


def expected_left_s(total_s: float, item: Running, now: float) -> float:
    """Remaining seconds by the expected duration ``total_s``; a tenth of the elapsed time where it takes longer."""
    return max((1.0 - item.fraction) * total_s - (now - (item.reported or item.since)), 0.1 * (now - item.since))


@dataclass
class Eta:
    """Remaining time: planned costs, corrected by the measured times of recipes of the same kind and network.

    Uses finished recipes, and running ones between two reports; packs do not count, as plans are for single recipes.
    """

    costs_s: Mapping[Key, float]
    """Planned seconds."""
    parallel: float = 1.0
    """Number of devices, of which a recipe takes ``takes(its demand)``."""
    _: KW_ONLY
    networks: Mapping[Key, str] = field(default_factory=dict)
    """Networks of those recipes that have one."""
    takes: Callable[[Demand], float] = lambda demand: 1.0
    at_once: float = math.inf
    """Most trials at once."""
    _finished: dict[tuple[str, ...], Spent] = field(default_factory=dict, init=False)

    def groups(self, kind: str, key: Key) -> tuple[tuple[str, ...], ...]:
        """Groups of similar recipes, the most similar first: same kind and network, same kind, all."""
        return (kind, self.networks.get(key, "")), (kind,), ()

    def finished(self, key: Key, kind: str, item: Running, now: float) -> None:
        """Record a finished recipe that ran alone and read no cached logits, without the work of earlier attempts."""
        began, before = item.begun(self.costs_s.get(key, 0.0))
        self._add(self._finished, key, kind, 1.0 - before, now - began)

    def _add(self, totals: dict[tuple[str, ...], Spent], key: Key, kind: str, fraction: float, spent_s: float) -> None:
        for group in self.groups(kind, key):
            before = totals.get(group, Spent())
            planned_s = before.planned_s + fraction * self.costs_s.get(key, 0.0)
            totals[group] = Spent(planned_s, before.spent_s + spent_s)

    def _learnt(self, queue: RecipeQueue, running: Mapping[Key, Running]) -> dict[tuple[str, ...], Spent]:
        totals = dict(self._finished)
        for key, item in running.items():
            if item.pace is not None and item.pack == 1 and not item.logits_read:
                seconds, done = item.pace
                self._add(totals, key, queue.recipes[key].kind, done, seconds)
        return totals

    def left_s(self, queue: RecipeQueue, running: Mapping[Key, Running], now: float) -> float:
        """Seconds until all runnable recipes are done, if the devices stay busy.

        At least the remaining time of every running recipe and of the longest remaining chain.
        """
        learnt = self._learnt(queue, running)
        left: dict[Key, float] = {}
        device_s = trial_s = 0.0
        for key, recipe in queue.recipes.items():
            if queue.state(key) not in ("running", "waiting"):
                continue
            groups, item = self.groups(recipe.kind, key), running.get(key)
            total_s = self.costs_s.get(key, 0.0) * _factor(learnt, groups)
            pack = item.pack if item is not None else 1
            own_s = own_left_s(item, now) if item is not None else None
            if item is not None and own_s is None:
                left[key] = expected_left_s(pack * total_s, item, now)
            else:
                left[key] = total_s if own_s is None else own_s
            # A plan is for a recipe alone on a device, a measured time for one on its share of it (``takes``).
            # Times of other kinds of recipes say nothing of that share.
            measured = own_s is not None or any(group in learnt for group in groups[:-1])
            trial_s += left[key] / pack
            device_s += left[key] / pack * (self.takes(queue.demand(key)) if measured else 1.0)
        return max(_longest_chain(queue, left), device_s / max(1.0, self.parallel), trial_s / self.at_once)


def _factor(learnt: Mapping[tuple[str, ...], Spent], groups: Sequence[tuple[str, ...]]) -> float:
    """Actual over planned time: a shrinkage estimate from the largest group (prior 1) to the most similar one."""
    factor = 1.0
    for group in reversed(groups):
        planned_s, spent_s = learnt.get(group, Spent())
        factor = (spent_s + PRIOR_S * factor) / (planned_s + PRIOR_S)
    return factor


def _longest_chain(queue: RecipeQueue, left: Mapping[Key, float]) -> float:
    """Seconds of the longest chain of dependent recipes."""

    @cache
    def path_s(key: Key) -> float:
        return left[key] + max((path_s(child) for child in queue.later(key) if child in left), default=0.0)

    return max(map(path_s, left), default=0.0)


def eta_of(expansion: Expansion, queue: RecipeQueue, workers: Workers, max_concurrent: int | None) -> Eta:
    """The ETA of a queue by GPUs, or by cores where there is none; ``max_concurrent``: most trials at once."""
    cpus, gpus = workers.devices()
    return Eta(
        queue.costs_s,
        gpus or cpus,
        networks=networks_of(expansion),
        takes=attrgetter("gpus" if gpus else "cpus"),
        at_once=max_concurrent or math.inf,
    )


def networks_of(expansion: Expansion) -> dict[Key, str]:
    """The network that each recipe trains or uses: recipes of one kind and network take about equally long."""
    recipes = expansion.recipes

    def network_of(recipe: Recipe) -> str:
        own = getattr(recipe, "student", None) or getattr(recipe, "network", None)
        parents = (recipes.get(key) for _kind, key in recipe.parents())
        return own or next((parent.network for parent in parents if isinstance(parent, TeacherRecipe)), "")

    return {key: network_of(recipe) for key, recipe in recipes.items()}
