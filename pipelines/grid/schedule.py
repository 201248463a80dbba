"""Simulate a run to estimate its wall time: recipes start in the order of a real run, on a simulated clock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from pipelines.grid.queue import RecipeQueue
from rd3.recipe import Key


def wall_s(queue: RecipeQueue, seconds: Mapping[Key, float], cpus: float, gpus: float = 0.0) -> float:
    """Simulated seconds until ``queue`` is finished, if every recipe takes its ``seconds``; consumes the queue."""
    clock = 0.0
    running: list[tuple[float, Key]] = []
    while True:
        while (recipe := queue.take(cpus, gpus)) is not None:
            heapq.heappush(running, (clock + seconds.get(recipe.key, 0.0), recipe.key))
        if not running:
            return clock
        clock, key = heapq.heappop(running)
        queue.finish(key)


def least_wall_s(queue: RecipeQueue, devices: float) -> float:
    """Lower bound of the wall time in seconds: total work divided by devices, or the longest chain."""
    total = sum(seconds for key, seconds in queue.costs_s.items() if queue.state(key) != "reused")
    return max(total / devices, max(queue.path_s.values(), default=0.0))
