"""What the driver does when a worker finds that a parent of its recipe is missing or damaged.

Before anything is forgotten, the driver reads the files at their source: the disk or the network of one worker must not
remove an intact result from the ledger.
"""

from __future__ import annotations

from collections import Counter

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.job import TrialEnd
from pipelines.grid.queue import RecipeQueue
from rd3.recipe import Key

READINGS = 3
"""Number of attempts after which a recipe fails whose parents are intact at their source."""


class DamagedParents:
    """Makes parents again that are damaged at their source, once each."""

    def __init__(self, queue: RecipeQueue, books: Bookkeeping):
        self._queue, self._books = queue, books
        self._readings: Counter[Key] = Counter()
        self._made_again: set[Key] = set()
        self._good_since: dict[Key, int] = {}
        """Number of the first trial that starts after a parent was found intact, or is made again."""

    def resolve(self, key: Key, end: TrialEnd, trial: int, next_trial: int) -> str | None:
        """Queue damaged parents again; returns why the recipe fails, or None if it may be queued again behind them.

        ``trial``: number of its trial; ``next_trial``: number of the next one to start.  A trial that started before a
        parent was made again has read the earlier files, which says nothing about the new ones.
        """
        suspects = [(kind, parent) for kind, parent in end.broken if trial >= self._good_since.get(parent, 0)]
        damaged = [(kind, parent) for kind, parent in suspects if self._books.damaged(kind, parent)]
        if any(parent in self._made_again or parent not in self._queue.recipes for _kind, parent in damaged):
            return end.reason
        self._readings[key] += 1
        if suspects and not damaged and self._readings[key] >= READINGS:
            return f"{end.reason} At their source the files are intact. Fix: check the disk and network of that machine"
        for _kind, parent in suspects:
            self._good_since[parent] = next_trial
        for kind, parent in damaged:
            self._made_again.add(parent)
            self._books.forget(kind, parent)
            self._queue.again(parent)
        return None
