"""The driver's side of a run: what goes out next, and what becomes of what comes back.  Knows no Tune.

The driver alone writes the ledger, from what trials report, so that an orphan worker can do no harm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipelines.progress import View
from pipelines.queue import Demand, RecipeQueue
from pipelines.trial import Job, TrialEnd
from rd3.errors import RD3Error
from rd3.recipe import Recipe

DEATHS = 3
"""How often the process of one recipe may die before the recipe counts as killed."""
_CAPACITY_EVERY_S = 10.0


class Leave(BaseException):
    """Leaves Tune's loop at once; not an ``Exception``, so that nothing on the way mends it."""


class Driver:
    """What the searcher, the callback and the command share while Tune runs."""

    def __init__(
        self,
        queue: RecipeQueue,
        view: View,
        *,
        job: Callable[[Recipe, Demand], Job],
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
        self._out: dict[str, str] = {}
        self._deaths: dict[str, int] = {}
        self._made_again: set[str] = set()
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
        if self.max_concurrent and len(self._out) >= self.max_concurrent:
            return None
        endless = (float("inf"), float("inf"))
        if self.max_concurrent:
            recipe = self.queue.take(*endless, at_once=self.max_concurrent)
        else:
            recipe = self.queue.take(*self._devices())
        if recipe is None:
            return None
        demand = self.queue.demand(recipe.key)
        try:
            job = self.job(recipe, demand)
        except RD3Error as error:
            self._give_up(error)
            return None
        self._out[trial_id] = recipe.key
        self.view.started(recipe.key)
        return {"job": json.dumps(asdict(job)), "cpus": demand.cpus, "gpus": demand.gpus}

    def on_progress(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._out and "fraction" in result:
            self.view.moved(self._out[trial_id], result["fraction"], result.get("note", ""))

    def on_end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """A trial has said how it ended."""
        key = self._out.pop(trial_id, None)
        if key is None:
            return
        try:
            if result is None or "end" not in result:
                self._close(key, "failed", "the trial ended without a word")
                return
            end = TrialEnd.from_json(result["end"])
            if end.status == "done":
                if end.entry is not None:
                    self.keep(end.entry)
                self.queue.finish(key)
                self.view.ended(key, "done")
            elif end.broken and self._make_again(key, end.broken):
                self.view.ended(key, "waiting", end.reason)
            else:
                self._close(key, end.status, end.reason)
        except RD3Error as error:
            self._give_up(error)

    def _give_up(self, error: RD3Error) -> None:
        """The ledger failed us; if we were leaving anyway, that is why we leave."""
        if not self.stopping():
            self.fatal = error

    def on_death(self, trial_id: str, reason: str) -> None:
        """The process of a trial is gone: the recipe goes out again, a few times."""
        key = self._out.pop(trial_id, None)
        if key is None:
            return
        self._deaths[key] = self._deaths.get(key, 0) + 1
        memory = "OutOfMemory" in reason
        if self._deaths[key] < DEATHS and not memory:
            self.queue.again(key)
            self.view.ended(key, "killed", "its process died; it is started again")
        else:
            what = "ran out of memory" if memory else f"died {self._deaths[key]} times"
            self._close(key, "oom" if memory else "killed", f"its process {what}")

    def _make_again(self, key: str, broken: list[tuple[str, str]]) -> bool:
        """Forget damaged parents and make them again, once each; False if that cannot help."""
        if any(parent not in self.queue.recipes or parent in self._made_again for _kind, parent in broken):
            return False
        for kind, parent in broken:
            self._made_again.add(parent)
            self.forget(kind, parent)
            self.queue.again(parent)
        self.queue.again(key)
        return True

    def _close(self, key: str, status: str, reason: str) -> None:
        self.queue.close(key, status, reason)
        self.view.ended(key, status, reason)
