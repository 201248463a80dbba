"""Which evaluations are trained together in one trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection

from pipelines.grid.queue import Queued, RecipeQueue
from rd3.evaluation.packing import PACK_SIZE, Packing
from rd3.recipe import EvaluationRecipe, Key, Recipe


class Packs:
    """Chooses packs from the ready evaluations of a queue."""

    def __init__(self, queue: RecipeQueue):
        self._queue = queue
        evaluation = queue.demands.get("evaluation")
        on_gpu = evaluation is not None and evaluation.gpus > 0
        self._packing = Packing([one for one in queue.recipes.values() if isinstance(one, Recipe)], side_by_side=on_gpu)

    def companions(self, first: Queued, at_a_time: int, alone: Collection[Key]) -> list[EvaluationRecipe]:
        """Evaluations to be trained with ``first``, just taken from the queue; ``at_a_time`` trials run at once.

        ``alone``: recipes that are never packed.  A pack has at most ceil(ready recipes / parallel trials) members, so
        that no device is idle while recipes wait inside a busy process.  Where a trial takes a part of a GPU, it has at
        most that part of ``PACK_SIZE``, so that there are never more students on a GPU.  Where several trials run in
        parallel, its members take at most :meth:`RecipeQueue.long_s` together, as planned, so that a long pack is not
        left over at the end.
        """
        if first.key in alone or not isinstance(first, Recipe):  # shares of sets are queued, too
            return []
        most = math.floor(PACK_SIZE * min(1.0, self._queue.demand(first.key).gpus or 1.0))
        room = min(most, math.ceil((len(self._queue.ready) + 1) / at_a_time)) - 1
        others = self._packing.companions(first, lambda key: key in self._queue.ready and key not in alone, room)
        if at_a_time == 1:
            return others
        costs_s = [self._queue.costs_s.get(recipe.key, 0.0) for recipe in (first, *others)]
        sums_s, most_s = list(itertools.accumulate(costs_s)), self._queue.long_s(at_a_time)
        return [other for other, sum_s in zip(others, sums_s[1:], strict=True) if sum_s <= most_s]
