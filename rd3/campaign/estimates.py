"""Run time of recipes: the estimate of :mod:`rd3.planning`, corrected by the recipes that finished in this campaign."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from rd3.campaign.running import Running
from rd3.datasets import DatasetInfo
from rd3.errors import RD3Error
from rd3.planning.cost import Rates
from rd3.planning.forecast import FORECASTS, work
from rd3.recipe import Key, Recipe, read_recipe
from rd3.store import Entry

SLACK = 4.0
"""Factor by which an estimate may be too long before any recipe of its kind has finished in this campaign."""
CANNOT_BE_PLANNED = (RD3Error, LookupError, ValueError)
"""Raised by planning for recipes that cannot run here: unknown names, missing parents, settings of another version."""
MIN_FRACTION = 0.05
"""Below this fraction, progress is not used to estimate the time left."""


class Estimates:
    """Run time of each recipe in seconds, alone on one worker."""

    def __init__(
        self,
        recipes: Mapping[Key, Recipe],
        find: Callable[[str, Key], Entry | None],
        info_of: Callable[[str], DatasetInfo],
        rates: Rates,
    ):
        """``find(kind, key)``: entries of parents that are not among the recipes."""
        self.recipes, self.rates = recipes, rates
        self._find, self._info_of = find, cache(info_of)
        self._planned: dict[Key, float] = {}
        self._parts: dict[Key, int] = {}
        self._learnt: dict[str, tuple[float, float]] = {}  # (planned, measured) seconds of finished recipes, by kind

    def planned(self, key: Key) -> float:
        """Planned seconds of a recipe; only the time of a start if they cannot be computed: the recipe reports why."""
        if key not in self._planned:
            try:
                self._planned[key] = self._from_cost(self.recipes[key])
            except CANNOT_BE_PLANNED:
                self._planned[key] = self.rates.start_s
        return self._planned[key]

    def _from_cost(self, recipe: Recipe) -> float:
        kinds = {key: kind for kind, key in recipe.parents()}

        def parent(key: Key) -> Recipe:
            if key in self.recipes:
                return self.recipes[key]
            entry = self._find(kinds[key], key)
            if entry is None:
                raise LookupError(key)
            return read_recipe(entry.recipe)

        return self.rates.seconds(work(recipe, self._info_of(recipe.data.name), parent))

    def learn(self, key: Key, spent_s: float, fraction: float = 1.0) -> None:
        """Record the measured seconds in which a ``fraction`` of a recipe was finished."""
        kind = self.recipes[key].kind
        planned, spent = self._learnt.get(kind, (0.0, 0.0))
        self._learnt[kind] = planned + fraction * self.planned(key), spent + spent_s

    def _factor(self, kind: str) -> float:
        """Measured / planned time: of this kind, else of all finished recipes, else 1."""
        known = [self._learnt[kind]] if kind in self._learnt else list(self._learnt.values())
        planned = sum(one for one, _spent in known)
        return sum(spent for _planned, spent in known) / planned if planned else 1.0

    def seconds(self, key: Key) -> float:
        """Estimated seconds for the whole recipe."""
        return self.planned(key) * self._factor(self.recipes[key].kind)

    def optimistic(self, key: Key) -> float:
        """Estimated seconds, with optimism: ``SLACK`` times shorter until a recipe of its kind has finished."""
        known = self.recipes[key].kind in self._learnt
        return self.seconds(key) / (1.0 if known else SLACK)

    def parts(self, key: Key) -> int:
        """Number of resumable parts of a recipe: epochs of a training, blocks of a set, otherwise 1."""
        if key not in self._parts:
            recipe = self.recipes[key]
            try:
                self._parts[key] = FORECASTS[type(recipe)].parts(recipe, self._info_of(recipe.data.name))
            except CANNOT_BE_PLANNED:
                self._parts[key] = 1
        return self._parts[key]

    def choose(self, ready: Iterable[Recipe], left_s: float) -> Recipe | None:
        """The first recipe likely to finish in ``left_s`` seconds, else the first with a part that is, else None."""
        later = None
        for recipe in ready:
            if self.optimistic(recipe.key) <= left_s:
                return recipe
            if later is None and self.optimistic(recipe.key) / self.parts(recipe.key) <= left_s:
                later = recipe
        return later

    def left_s(self, waiting: Iterable[Key], running: Mapping[Key, Running], now: float, workers: int) -> float:
        """Seconds until all recipes are finished.

        At least the time that the longest single recipe or pack needs, as a pack keeps one worker.
        """
        rests = [(self._rest(key, item, now), item.pack) for key, item in running.items()]
        rests += [(self.seconds(key), 1) for key in waiting]
        longest_s = max((rest * pack for rest, pack in rests), default=0.0)
        return max(longest_s, math.fsum(rest for rest, _pack in rests) / max(1, workers))

    def _rest(self, key: Key, item: Running, now: float) -> float:
        """Seconds left; progress much sooner than planned is of an earlier attempt (``before``)."""
        began, before = item.begun(self.planned(key))
        spent_s, gained = (now - began) / item.pack, item.fraction - before
        if gained >= MIN_FRACTION:
            return spent_s * (1 - item.fraction) / gained
        return max(self.seconds(key) * (1 - before) - spent_s, 0.0)
