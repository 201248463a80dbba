"""The driver's side of a run: what goes out next, and what becomes of what comes back.  Knows no Tune.

The driver alone writes the ledger, from what trials report, so that an orphan worker can do no harm.  A trial takes one
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
"""How often the process of one recipe may die before the recipe counts as killed."""
_CAPACITY_EVERY_S = 10.0


class Leave(BaseException):
    """Leaves Tune's loop at once; not an ``Exception``, so that nothing on the way mends it."""


@dataclass
class _Trial:
    """One that is out."""

    keys: list[Key]
    """By number of the job."""
    open: set[Key]
    """What has not ended."""
    unfit: str = ""
    """Why its process exited, where it reported that."""

    def unended(self) -> list[Key]:
        return [key for key in self.keys if key in self.open]


class Driver:
    """What the searcher, the callback and the command share while Tune runs."""

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
        """``keep`` puts a finished entry into the ledger, ``forget`` takes a broken one out of it.

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
        """Recipes whose process has died: they are never packed again."""
        self._made_again: set[Key] = set()
        evaluation = queue.demands.get("evaluation")
        on_gpu = evaluation is not None and evaluation.gpus > 0
        self._packing = Packing([one for one in queue.recipes.values() if isinstance(one, Recipe)], side_by_side=on_gpu)
        self._devices_of = devices
        self._capacity = (0.0, 0.0)
        self._looked = float("-inf")

    @property
    def leaving(self) -> bool:
        """Nothing more goes out, and nobody waits for what is out."""
        return self.fatal is not None or self.stopping()

    def _devices(self) -> tuple[float, float]:
        """What the cluster has in all; a cluster may grow, so it is asked again now and then."""
        if time.monotonic() - self._looked > _CAPACITY_EVERY_S:
            self._capacity = self._devices_of()
            self._looked = time.monotonic()
        return self._capacity

    def next_config(self, trial_id: str) -> dict[str, Any] | None:
        """Configuration of the next trial, or None while there is none."""
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
        """Evaluations to be trained with ``first``.

        A pack has at most ceil(ready recipes / trials that the cluster runs at a time) members, so that no device idles
        while recipes wait inside a busy process.  Where a trial takes a part of a GPU, it has at most that part of
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
        """A trial is complete; ``result`` is its last report."""
        trial = self._out.pop(trial_id, None)
        if trial is None:
            return
        if result is not None and "end" in result:
            self._hear(trial, result)
        for key in trial.unended():
            self._close(key, "failed", "the trial ended without a word")

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
        """The ledger failed us; if we were leaving anyway, that is why we leave."""
        if not self.stopping():
            self.fatal = error

    def on_death(self, trial_id: str, reason: str) -> None:
        """The process of a trial has died: unfinished recipes are started again, each alone, a few times."""
        trial = self._out.pop(trial_id, None)
        if trial is None:
            return
        self._alone |= trial.open
        for key in trial.unended():
            if len(trial.keys) > 1:
                self.queue.again(key)
                how = _how(trial.unfit)
                self.view.ended(key, "killed", f"the process of its pack {how}; it is started again, alone")
            else:
                self._died(key, trial.unfit, out_of_memory=not trial.unfit and "OutOfMemory" in reason)

    def _died(self, key: Key, unfit: str, *, out_of_memory: bool) -> None:
        """The process that made this recipe alone has died."""
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if out_of_memory:
            self._close(key, "oom", "its process ran out of memory")
        elif self._deaths[key] < DEATHS:
            self.queue.again(key)
            self.view.ended(key, "killed", f"its process {_how(unfit)}; it is started again")
        else:
            last = f", at last after {unfit}" if unfit else ""
            self._close(key, "killed", f"its process died {self._deaths[key]} times{last}")

    def _make_again(self, key: Key, broken: list[tuple[str, Key]]) -> bool:
        """Forget damaged parents and make them again, once each; False if that cannot help."""
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
