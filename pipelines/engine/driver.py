"""The driver of a run: starts trials, handles their reports and writes the ledger.  Independent of Ray Tune.

A trial runs one recipe, or a pack of evaluations, each of which ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.damage import DamagedParents
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import JOBS, TrialEnd
from pipelines.engine.job_builder import JobBuilder
from pipelines.engine.packs import Packs
from pipelines.engine.progress import View
from pipelines.engine.workers import Workers
from pipelines.grid.queue import Queued, RecipeQueue
from rd3.errors import RD3Error
from rd3.evaluation.logits_folder import LogitsFolder
from rd3.evaluation.sharing import Sharing
from rd3.recipe import Key, Recipe

DEATHS = 3
"""Number of process deaths after which a recipe counts as killed."""
_USUAL_CAUSE = (
    "the usual cause is too little memory, also by the limit of a container or job, which Ray may not see: run fewer "
    "trials at a time (--concurrent) or raise the limit"
)


class StopDriver(BaseException):
    """Leaves Tune's loop at once; not an ``Exception``, so that no handler in Tune catches it."""


@dataclass
class _Trial:
    """A running trial."""

    number: int
    """Number of trials that were started before it."""
    keys: list[Key]
    """Keys by job index."""
    open: set[Key]
    """Keys of recipes that have not ended."""
    unfit: str = ""
    """Why its process exited, if reported."""

    @property
    def unfinished(self) -> list[Key]:
        return [key for key in self.keys if key in self.open]

    @property
    def how_it_died(self) -> str:
        return f"ended after {self.unfit}" if self.unfit else "died"


class Driver:
    """Owns the queue, the trials and, by its books, the ledger.  Tune's searcher and callback call it."""

    def __init__(
        self,
        queue: RecipeQueue,
        view: View,
        jobs: JobBuilder,
        books: Bookkeeping,
        workers: Workers,
        interrupts: Interrupts,
        *,
        max_concurrent: int | None = None,
        cache_logits_bytes: int = 0,
    ):
        """``max_concurrent``: maximum number of parallel trials (default: as many as fit on the cluster).

        ``cache_logits_bytes``: disk budget of cached teacher logits on each machine; 0: none are kept.
        """
        self.queue, self.view = queue, view
        self.fatal: BaseException | None = None
        """The error that stops the driver."""
        self._jobs, self._books, self._workers, self._interrupts = jobs, books, workers, interrupts
        self._max_concurrent = max_concurrent
        self._packs = Packs(queue)
        cacheable = [one for one in queue.recipes.values() if isinstance(one, Recipe)] if cache_logits_bytes else []
        self._sharing = Sharing(cacheable, cache_logits_bytes)
        self._damage = DamagedParents(queue, books)
        self._trials: dict[str, _Trial] = {}
        self._started = 0
        """Number of trials that were started."""
        self._deaths: Counter[Key] = Counter()
        self._alone: set[Key] = set()
        """Recipes whose process has died; never packed again."""

    @property
    def leaving(self) -> bool:
        """Whether to stop: no more trials start, and running ones are not awaited."""
        return self.fatal is not None or bool(self._interrupts.name)

    def next_config(self, trial_id: str) -> dict[str, Any] | None:
        """``jobs`` (:data:`JOBS` as JSON), ``cpus`` and ``gpus`` of the next trial; None if none can start."""
        if self.leaving:
            return None
        first = self._take_next()
        if first is None:
            return None
        demand = self.queue.demand(first.key)
        at_a_time = self._max_concurrent or demand.at_a_time(*self._workers.devices())
        pack: list[Queued] = [first, *self._packs.companions(first, at_a_time, self._alone)]
        keys = [recipe.key for recipe in pack]
        self.queue.join(first.key, keys[1:])
        cached_logits = self._sharing.keep(keys, lambda key: self.queue.state(key) == "waiting")
        try:
            jobs = [replace(self._jobs.job(one, demand), cached_logits=cached_logits.get(one.key)) for one in pack]
        except RD3Error as error:
            self._give_up(error)
            return None
        self._trials[trial_id] = _Trial(self._started, keys, set(keys))
        self._started += 1
        for key in keys:
            self.view.started(key, len(keys), logits_read=key in cached_logits)
        return {"jobs": json.dumps(JOBS.dump_python(jobs, mode="json")), "cpus": demand.cpus, "gpus": demand.gpus}

    def discard_logits(self, home: Path) -> None:
        """Delete cached logits on this machine that no evaluation needs, not even an unfinished one."""
        with contextlib.suppress(OSError):
            views = self._sharing.unneeded(lambda key: self.queue.state(key) in ("waiting", "running"))
            LogitsFolder(home).discard(views)

    def _take_next(self) -> Queued | None:
        """Mark the next recipe as running and return it; None if none can start."""
        if not self._max_concurrent:
            return self.queue.take(*self._workers.devices())
        if len(self._trials) >= self._max_concurrent:
            return None
        # With a fixed number of trials, devices do not count: an autoscaling cluster sees the demand and grows.
        return self.queue.take(math.inf, math.inf, at_once=self._max_concurrent)

    def on_report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Progress of the recipes of a trial, or the end of one of several.

        The last end is handled when the trial is complete and its worker is free (:meth:`on_end`).
        """
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        trial.unfit = result.get("unfit", trial.unfit)
        for number, fraction, note in json.loads(result.get("moved", "[]")):
            self.view.moved(trial.keys[number], fraction, note)
        if "end" in result and len(trial.open) > 1:
            self._handle_end(trial, result)

    def on_end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Handle the end of a trial; ``result`` is its last report."""
        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        if result is not None and "end" in result:
            self._handle_end(trial, result)
        for key in trial.unfinished:
            self._close_unlogged(key, "failed", "the trial ended without a report")

    def _handle_end(self, trial: _Trial, result: dict[str, Any]) -> None:
        """Handle the report that a recipe of a trial has ended; a repeated one is ignored."""
        key = trial.keys[result["number"]]
        if key in trial.open:
            trial.open.discard(key)
            try:
                self._ended(trial, key, TrialEnd.from_json(result["end"]))
            except RD3Error as error:
                self._give_up(error)

    def _ended(self, trial: _Trial, key: Key, end: TrialEnd) -> None:
        if end.status == "done":
            self._done(key, end.entry)
            return
        failure = self._damage.resolve(key, end, trial.number, self._started) if end.broken else end.reason
        if failure is None:
            self.queue.again(key)  # behind its parents, or blocked if one of them has failed meanwhile
            self.view.ended(key, *self.queue.unsuccessful.get(key, ("waiting", end.reason)))
        else:
            self._close(key, end.status, failure)

    def _done(self, key: Key, entry: dict[str, Any] | None) -> None:
        """Record a result; a share of a set has no entry."""
        if entry is not None:
            self._books.keep(entry)
            if self.queue.after.get(key):
                self._books.discard_blocks(key)
            made = entry.get("made", {})
            self.view.packed(key, made.get("pack", 1), logits_read="cached_logits" in made)
        self.queue.finish(key)
        self.view.ended(key, "done")

    def _give_up(self, error: RD3Error) -> None:
        """Stop because of a ledger error, unless we are stopping already."""
        if not self._interrupts.name:
            self.fatal = error

    def on_death(self, trial_id: str, reason: str) -> None:
        """Handle the death of a trial's process: restart its unfinished recipes, each alone, a few times.

        ``reason``: type and text of the error that Tune has for it.
        """
        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        self._alone |= trial.open
        for key in trial.unfinished:
            if len(trial.keys) > 1:
                self.queue.again(key)
                self.view.ended(key, "killed", f"its pack {trial.how_it_died}; restarting it alone")
                continue
            self._deaths[key] += 1
            if not trial.unfit and "OutOfMemory" in reason:
                self._close_unlogged(key, "oom", "its process ran out of memory")
            elif self._deaths[key] < DEATHS:
                self.queue.again(key)
                self.view.ended(key, "killed", f"its process {trial.how_it_died}; restarting it")
            else:
                last = f", most recently after {trial.unfit}" if trial.unfit else f"; {_USUAL_CAUSE}"
                self._close_unlogged(key, "killed", f"its process died {self._deaths[key]} times{last}")

    def _close_unlogged(self, key: Key, status: str, reason: str) -> None:
        """Close a recipe whose process did not write to the log of trials how it ended."""
        self._close(key, status, reason)
        with contextlib.suppress(OSError):  # a full disk may be what ended it
            self._books.log_failure(self.queue.recipes[key].kind, key, status, reason)

    def _close(self, key: Key, status: str, reason: str) -> None:
        self.queue.close(key, status, reason)
        self.view.ended(key, status, reason)
