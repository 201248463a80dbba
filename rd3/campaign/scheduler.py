"""The scheduler of a campaign, which is one call of ``python -m rd3.run`` on folders of recipes.

It hands out recipes to workers, evaluations that can be trained together as packs, and keeps the time limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rd3.campaign.estimates import Estimates
from rd3.campaign.queue import OPEN, Queue
from rd3.campaign.runner import Ended, Event, Progressed, Runner
from rd3.campaign.running import Running
from rd3.campaign.view import View, column_counts, named
from rd3.campaign.workers import WorkerPool
from rd3.duration import duration
from rd3.errors import BadValue
from rd3.evaluation.packing import PACK_SIZE, Packing
from rd3.evaluation.sharing import LogitsCache, Sharing
from rd3.recipe import Key, Recipe, to_json

RESERVE_S = 10.0
"""Workers are asked to stop this many seconds before the time limit, or a tenth of the limit if that is less."""
WAIT_S = 0.2


@dataclass
class Scheduler:
    """State of a campaign: a queue, a clock (in seconds) and an optional time limit of ``seconds``."""

    queue: Queue
    estimates: Estimates
    view: View
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    started_at: float | None = None
    """Start of the time limit on the clock; None means now."""
    interrupted: bool = False
    side_by_side: bool = False
    """Whether several students may train on the device at once."""
    cache_logits_bytes: int = 0
    """Disk budget of cached teacher logits; 0: none are kept."""
    mistakes: set[Key] = field(default_factory=set)
    """Recipes that failed for a reason the user can fix."""

    def __post_init__(self) -> None:
        started_at = self.clock() if self.started_at is None else self.started_at
        self.reserve_s = RESERVE_S if self.seconds is None else min(RESERVE_S, self.seconds / 10)
        self.stops_at = math.inf if self.seconds is None else started_at + self.seconds - self.reserve_s
        """Clock time at which workers are asked to stop."""
        self.running: dict[Key, Running] = {}
        self.started = 0
        self._sharing = Sharing(self.queue.recipes.values() if self.cache_logits_bytes else (), self.cache_logits_bytes)
        self._packing = Packing(self.queue.recipes.values(), side_by_side=self.side_by_side)

    def must_stop(self) -> bool:
        return self.interrupted or self.clock() >= self.stops_at

    def next(self) -> list[Recipe]:
        """Recipes for one worker; empty if none is ready or none fits into the time left.

        Evaluations that can be trained together are returned together, as long as the other workers have work.
        """
        if self.must_stop():
            return []
        left_s = self.stops_at - self.clock()
        chosen = self.estimates.choose(self.queue.ready(), left_s)
        if chosen is None:
            return []
        together = [chosen, *self._companions(chosen, left_s)]
        self.queue.start(together)
        self.running |= {recipe.key: Running(self.clock(), pack=len(together)) for recipe in together}
        self.started += len(together)
        return together

    def cached_logits(self, handed: Sequence[Recipe]) -> dict[Key, LogitsCache]:
        """How the evaluations for one worker handle cached logits of their teachers."""
        states = self.queue.states
        return self._sharing.keep([one.key for one in handed], lambda key: states[key].name in ("waiting", "again"))

    def unneeded_logits(self) -> list[str]:
        """Keys of the views whose cached logits no evaluation of this campaign needs any more.

        Unfinished evaluations do, when the campaign is resumed.
        """
        return self._sharing.unneeded(lambda key: self.queue.states[key].name in (*OPEN, "unfinished"))

    def _companions(self, chosen: Recipe, left_s: float) -> list[Recipe]:
        if self.queue.states[chosen.key].name == "again":  # retried alone
            return []
        ready = {recipe.key for recipe in self.queue.ready() if self.queue.states[recipe.key].name == "waiting"}
        room = min(PACK_SIZE, math.ceil(len(ready) / self.view.workers)) - 1
        left_s -= self.estimates.seconds(chosen.key)
        found: list[Recipe] = []
        for recipe in self._packing.companions(chosen, ready.__contains__, room):
            left_s -= self.estimates.seconds(recipe.key)
            if left_s < 0:
                break
            found.append(recipe)
        return found

    def handle(self, event: Event, *, again: bool = True) -> None:
        """Handle an event of a recipe; with ``again``, a recipe whose process died may be retried once."""
        if isinstance(event, Progressed):
            self.running[event.key].report(self.clock(), event.fraction, event.note)
            self.view.progress(self.queue.recipes[event.key], event.fraction, event.note, self.status())
        else:
            self._ended(event, again)

    def _ended(self, event: Ended, again: bool) -> None:
        item = self.running.pop(event.key)
        recipe, second = self.queue.recipes[event.key], self.queue.states[event.key].alone
        # ``broken``: its process died or has to be replaced; it is retried once, with nothing beside it
        if event.broken and again and not second and not self.must_stop():
            self.queue.again(event.key, event.reason)
            self.view.line(f"{named(recipe)}: {event.reason}; retried later, alone")
            return
        if event.status == "done" and event.pack == 1 and not event.logits_read:
            # Resumed work, whose first report comes sooner than planned, teaches the time of what was left of it.
            began, resumed_from = item.begun(self.estimates.planned(event.key))
            spent_s = self.clock() - began if resumed_from else event.spent_s
            self.estimates.learn(event.key, spent_s, 1.0 - resumed_from)
        if event.mistake:
            self.mistakes.add(event.key)
        self.queue.end(event.key, event.status, event.reason)
        self.view.ended(recipe, event, self.status())

    def status(self) -> str:
        """``3/57 done, 2 failed, about 4 min 10 s left``."""
        waiting, counts = self.queue.named(("waiting", "again")), column_counts(self.queue)
        bad = "".join(f", {counts[name]} {name}" for name in ("failed", "blocked") if counts[name])
        left_s = self.estimates.left_s(waiting, self.running, self.clock(), self.view.workers)
        left = f", about {duration(left_s)} left" if left_s else ""
        return f"{counts['there'] + counts['done']}/{len(self.queue.recipes)} done{bad}{left}"

    def abandon_running(self) -> None:
        """Mark all running recipes as unfinished."""
        for key in list(self.running):
            self._ended(Ended(key, "unfinished"), False)

    def check_anything_fits(self) -> None:
        """Raise :class:`BadValue` if the time limit was too short to start any recipe."""
        waiting = list(self.queue.ready())
        if self.seconds is None or self.started or not waiting or self.interrupted:
            return

        def part_s(recipe: Recipe) -> float:
            """A recipe whose finished parts are kept starts if one of them fits."""
            return self.estimates.seconds(recipe.key) / self.estimates.parts(recipe.key)

        least = min(waiting, key=part_s)
        parts = self.estimates.parts(least.key)
        one_part = f", {duration(part_s(least))} for each of its {parts} parts, which are kept" if parts > 1 else ""
        raise BadValue(
            f"--minutes {self.seconds / 60:g} is too short to run anything: {least.label()} takes about "
            f"{duration(self.estimates.seconds(least.key))}{one_part}.",
            "raise --minutes",
        )


def run_in_process(scheduler: Scheduler, runner: Runner) -> None:
    """Run all in this process.  Packs that fail are retried one by one; recipes that fail alone are not retried.

    After a device error the others are left for another process, as every later call to the device would fail too.
    """
    device_failed = False

    def hear(event: Event) -> None:
        nonlocal device_failed
        device_failed |= isinstance(event, Ended) and event.broken and event.status == "failed"
        scheduler.handle(event, again=len(handed) > 1 and not device_failed)

    runner.prepare()
    while handed := scheduler.next():
        runner.run([to_json(recipe) for recipe in handed], hear, scheduler.must_stop, scheduler.cached_logits(handed))
        scheduler.abandon_running()  # what a broken recipe kept from starting
        if device_failed:
            scheduler.view.line("the device failed, and with it this process; run again for what has not started")
            return


def run_in_workers(pool: WorkerPool, scheduler: Scheduler) -> None:
    """Run all in the workers of a pool, which is closed at the end."""
    requested_at = None
    try:
        while True:
            while pool.has_room() and (handed := scheduler.next()):
                if scheduler.queue.states[handed[0].key].alone:
                    pool.end_idle()  # they still hold memory
                pool.submit(handed, scheduler.cached_logits(handed))
            if not scheduler.running:
                return
            for event in pool.events(WAIT_S):
                scheduler.handle(event)
            scheduler.view.draw(scheduler.status)
            if scheduler.must_stop() and requested_at is None:
                requested_at = scheduler.clock()
                pool.request_stop()
            # What has not stopped after half of the reserve is killed, which leaves the other half to end in.
            if requested_at is not None and scheduler.clock() >= requested_at + scheduler.reserve_s / 2:
                return
    finally:
        scheduler.abandon_running()
        pool.close()
