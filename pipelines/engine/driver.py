"""The driver's side of a run: starts trials and handles their reports.  Independent of Ray Tune.

Only the driver writes the ledger, from reports of trials, so that orphaned workers cannot do harm.  A trial runs one
recipe, or a pack of evaluations, each of which ends by itself.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.engine.job import Job, TrialEnd
from pipelines.engine.progress import View
from pipelines.grid.queue import Demand, Queued, RecipeQueue
from rd3.errors import RD3Error
from rd3.evaluation.packing import SIZE, Packing
from rd3.recipe import EvaluationRecipe, Key, Recipe

DEATHS = 3
"""Number of process deaths after which a recipe counts as killed."""
_CAPACITY_EVERY_S = 10.0


class Leave(BaseException):
    """Leaves Tune's loop at once; not an ``Exception``, so that no handler in Tune catches it."""


@dataclass
class _Trial:
    """A running trial."""

    keys: list[Key]
    """Keys by job index."""
    open: set[Key]
    """Keys of recipes that have not ended."""
    unfit: str = ""
    """Why its process exited, if reported."""

    def unended(self) -> list[Key]:
        return [key for key in self.keys if key in self.open]


class Driver:
    """State shared by the searcher, the callback and the command while Tune runs."""

    def __init__(
        self,
        queue: RecipeQueue,
        view: View,
        *,
        job: Callable[[Queued, Demand], Job],
        keep: Callable[[dict[str, Any]], None],
        forget: Callable[[str, str], None],
        devices: Callable[[], tuple[float, float]],
        max_concurrent: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        """``keep`` adds a finished entry to the ledger, ``forget`` removes a broken one.

        ``devices``: (CPUs, GPUs) of the whole cluster.
        """
        self.queue, self.view = queue, view
        self.job, self.keep, self.forget = job, keep, forget
        self.max_concurrent = max_concurrent
        self.stopping = stopping
        self.fatal: BaseException | None = None
        self._out: dict[str, _Trial] = {}
        self._deaths: dict[Key, int] = {}
        self._alone: set[Key] = set()
        """Recipes whose process has died; never packed again."""
        self._made_again: set[Key] = set()
        evaluation = queue.demands.get("evaluation")
        on_gpu = evaluation is not None and evaluation.gpus > 0
        self._packing = Packing([one for one in queue.recipes.values() if isinstance(one, Recipe)], side_by_side=on_gpu)
        self._devices_of = devices
        self._capacity = (0.0, 0.0)
        self._checked = float("-inf")

    @property
    def leaving(self) -> bool:
        """Whether to stop: no more trials start, and running ones are not awaited."""
        return self.fatal is not None or self.stopping()

    def _devices(self) -> tuple[float, float]:
        """(CPUs, GPUs) of the cluster, refreshed periodically because it may grow."""
        if time.monotonic() - self._checked > _CAPACITY_EVERY_S:
            self._capacity = self._devices_of()
            self._checked = time.monotonic()
        return self._capacity

    def next_config(self, trial_id: str) -> dict[str, Any] | None:
        """Configuration of the next trial, or None if none can start."""
        if self.leaving:
            return None
        first = self._first()
        if first is None:
            return None
        demand = self.queue.demand(first.key)
        pack: list[Queued] = [first, *self._companions(first, demand)]
        keys = [recipe.key for recipe in pack]
        self.queue.join(first.key, keys[1:])
        try:
            jobs = [self.job(recipe, demand).to_plain() for recipe in pack]
        except RD3Error as error:
            self._give_up(error)
            return None
        self._out[trial_id] = _Trial(keys, set(keys))
        for key in keys:
            self.view.started(key, len(keys))
        return {"jobs": json.dumps(jobs), "cpus": demand.cpus, "gpus": demand.gpus}

    def _first(self) -> Queued | None:
        if not self.max_concurrent:
            return self.queue.take(*self._devices())
        if len(self._out) >= self.max_concurrent:
            return None
        return self.queue.take(math.inf, math.inf, at_once=self.max_concurrent)

    def _companions(self, first: Queued, demand: Demand) -> list[EvaluationRecipe]:
        """Evaluations to be trained together with ``first``.

        A pack has at most ceil(ready recipes / parallel trials of the cluster) members, so that no device is idle while
        recipes wait inside a busy process.  Where a trial takes a part of a GPU, it has at most that part of
        ``SIZE``, so that a GPU never holds more than ``SIZE`` students.  Where there are other devices, the planned
        time of its members together is at most what is long beside all that is left (:meth:`RecipeQueue.long_s`).
        """
        if first.key in self._alone or not isinstance(first, Recipe):
            return []
        at_a_time = self.max_concurrent or demand.at_a_time(*self._devices())
        most = math.floor(SIZE * min(1.0, demand.gpus or 1.0))
        room = min(most, math.ceil((len(self.queue.ready) + 1) / at_a_time)) - 1
        others = self._packing.companions(first, self._may_join, room)
        return others if at_a_time == 1 else self._brief(first, others, self.queue.long_s(at_a_time))

    def _brief(self, first: Recipe, others: list[EvaluationRecipe], most_s: float) -> list[EvaluationRecipe]:
        """As many of ``others`` as take ``most_s`` with ``first``."""
        costs_s = [self.queue.costs_s.get(recipe.key, 0.0) for recipe in (first, *others)]
        sums_s = itertools.accumulate(costs_s)
        return [other for other, sum_s in zip(others, list(sums_s)[1:], strict=True) if sum_s <= most_s]

    def _may_join(self, key: Key) -> bool:
        return key in self.queue.ready and key not in self._alone

    def on_report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Progress of the recipes of a trial, or the end of one of several.

        The last end is handled when the trial is complete and its worker is free (:meth:`on_end`).
        """
        trial = self._out.get(trial_id)
        if trial is None:
            return
        trial.unfit = result.get("unfit", trial.unfit)
        for number, fraction, note in json.loads(result.get("moved", "[]")):
            self.view.moved(trial.keys[number], fraction, note)
        if "end" in result and len(trial.open) > 1:
            self._hear(trial, result)

    def on_end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Handle the end of a trial; ``result`` is its last report."""
        trial = self._out.pop(trial_id, None)
        if trial is None:
            return
        if result is not None and "end" in result:
            self._hear(trial, result)
        for key in trial.unended():
            self._close(key, "failed", "the trial ended without a report")

    def _hear(self, trial: _Trial, result: dict[str, Any]) -> None:
        """A recipe of a trial has ended; a repeated report is ignored."""
        key = trial.keys[result["number"]]
        if key in trial.open:
            trial.open.discard(key)
            try:
                self._ended(key, TrialEnd.from_json(result["end"]))
            except RD3Error as error:
                self._give_up(error)

    def _ended(self, key: Key, end: TrialEnd) -> None:
        if end.status == "done":
            if end.entry is not None:
                self.keep(end.entry)
                self.view.packed(key, end.entry.get("made", {}).get("pack", 1))
            self.queue.finish(key)
            self.view.ended(key, "done")
        elif end.broken and self._make_again(key, end.broken):
            self.view.ended(key, "waiting", end.reason)
        else:
            self._close(key, end.status, end.reason)

    def _give_up(self, error: RD3Error) -> None:
        """Stop because of a ledger error, unless we are stopping already."""
        if not self.stopping():
            self.fatal = error

    def on_death(self, trial_id: str, reason: str) -> None:
        """Handle the death of a trial's process: restart its unfinished recipes, each alone, a few times."""
        trial = self._out.pop(trial_id, None)
        if trial is None:
            return
        self._alone |= trial.open
        for key in trial.unended():
            if len(trial.keys) > 1:
                self.queue.again(key)
                how = _how(trial.unfit)
                self.view.ended(key, "killed", f"the process of its pack {how}; restarting it alone")
            else:
                self._died(key, trial.unfit, out_of_memory=not trial.unfit and "OutOfMemory" in reason)

    def _died(self, key: Key, unfit: str, *, out_of_memory: bool) -> None:
        """Handle the death of the process of a single recipe."""
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if out_of_memory:
            self._close(key, "oom", "its process ran out of memory")
        elif self._deaths[key] < DEATHS:
            self.queue.again(key)
            self.view.ended(key, "killed", f"its process {_how(unfit)}; restarting it")
        else:
            last = f", most recently after {unfit}" if unfit else ""
            self._close(key, "killed", f"its process died {self._deaths[key]} times{last}")

    def _make_again(self, key: Key, broken: list[tuple[str, Key]]) -> bool:
        """Regenerate damaged parents, once each; False if that is impossible."""
        for _kind, parent in broken:
            made_again = parent in self._made_again and self.queue.state(parent) not in ("running", "waiting")
            if parent not in self.queue.recipes or made_again:
                return False
        for kind, parent in broken:
            if parent not in self._made_again:
                self._made_again.add(parent)
                self.forget(kind, parent)
                self.queue.again(parent)
        self.queue.again(key)
        return True

    def _close(self, key: Key, status: str, reason: str) -> None:
        self.queue.close(key, status, reason)
        self.view.ended(key, status, reason)


def _how(unfit: str) -> str:
    return f"ended after {unfit}" if unfit else "died"
