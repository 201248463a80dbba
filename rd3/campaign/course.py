"""The course of a campaign: what is handed out, what is heard, and when it has to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rd3.campaign.crew import Crew, Died
from rd3.campaign.estimates import Estimates
from rd3.campaign.maker import Ended, Event, Maker, Moved
from rd3.campaign.queue import Queue
from rd3.campaign.view import View, span
from rd3.errors import BadValue
from rd3.evaluation.packing import SIZE, Packing
from rd3.recipe import Key, Recipe, to_json

RESERVE_S = 10.0
"""Workers are asked to stop this long before the time is up, or a tenth of it if that is less."""
WAIT_S = 0.2


@dataclass
class Running:
    """One recipe under way."""

    since: float
    fraction: float = 0.0
    pack: int = 1
    """How many are made together: each takes that part of the time."""


@dataclass
class Course:
    """A queue on its way, with a clock (seconds) and the seconds that there are, if these are limited."""

    queue: Queue
    estimates: Estimates
    view: View
    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    begun: float | None = None
    """When the seconds began to count; now, if nothing is said."""
    interrupted: bool = False
    side_by_side: bool = False
    """Whether the device has room for several students at once."""
    mistakes: set[Key] = field(default_factory=set)
    """What failed by something that the user can mend."""

    def __post_init__(self) -> None:
        self.begun = self.clock() if self.begun is None else self.begun
        self.running: dict[Key, Running] = {}
        self.started = 0
        self._packing = Packing(self.queue.recipes.values(), side_by_side=self.side_by_side)

    @property
    def reserve_s(self) -> float:
        """What is kept for stopping."""
        return RESERVE_S if self.seconds is None else min(RESERVE_S, self.seconds / 10)

    @property
    def stops_at(self) -> float:
        """When workers are asked to stop."""
        if self.seconds is None or self.begun is None:
            return float("inf")
        return self.begun + self.seconds - self.reserve_s

    def must_stop(self) -> bool:
        return self.interrupted or self.clock() >= self.stops_at

    def next(self) -> list[Recipe]:
        """Recipes for one worker, empty if there is nothing (left to do, or to start in the time that is left).

        Evaluations that can be trained together come together, as long as there is work for the other workers.
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

    def _companions(self, chosen: Recipe, left_s: float) -> list[Recipe]:
        if self.queue.states[chosen.key].name == "again":  # to be tried alone
            return []
        ready = {recipe.key for recipe in self.queue.ready() if self.queue.states[recipe.key].name == "waiting"}
        room = min(SIZE, math.ceil(len(ready) / self.view.workers)) - 1
        left_s -= self.estimates.seconds(chosen.key)
        found: list[Recipe] = []
        for recipe in self._packing.companions(chosen, ready.__contains__, room):
            left_s -= self.estimates.seconds(recipe.key)
            if left_s < 0:
                break
            found.append(recipe)
        return found

    def hear(self, event: Event | Died, *, again: bool = True) -> None:
        """Something happened to a recipe; ``again``: what a process died of may be tried once more."""
        if isinstance(event, Moved):
            self.running[event.key].fraction = event.fraction
            self.view.moved(self.queue.recipes[event.key], event.fraction, event.note, self.where())
        elif isinstance(event, Died):
            for key in event.keys:
                self._ended(Ended(key, "killed", event.reason, broken=True), again)
        else:
            self._ended(event, again)

    def _ended(self, event: Ended, again: bool) -> None:
        self.running.pop(event.key)
        recipe, second = self.queue.recipes[event.key], self.queue.states[event.key].alone
        if event.broken and again and not second and not self.must_stop():
            self.queue.again(event.key, event.reason)
            self.view.said(recipe, f"{event.reason}; it is tried once more, alone")
            return
        if event.status == "done" and event.pack == 1:
            self.estimates.learn(event.key, event.spent_s)
        if event.mistake:
            self.mistakes.add(event.key)
        self.queue.end(event.key, event.status, event.reason)
        self.view.ended(recipe, event, self.where())

    def where(self) -> str:
        """``3/57 done, 2 failed, 4 min 10 s left``."""
        return self.view.where(self.queue, self._left_s())

    def _left_s(self) -> float:
        now = self.clock()
        running = {key: ((now - one.since) / one.pack, one.fraction) for key, one in self.running.items()}
        return self.estimates.left_s(self.queue.named(("waiting", "again")), running, self.view.workers)

    def leave(self) -> None:
        """What is still under way stays unfinished."""
        for key in list(self.running):
            self._ended(Ended(key, "unfinished"), False)

    def check_anything_fits(self) -> None:
        """Raise if there was work, and no time for the least of it."""
        waiting = list(self.queue.ready())
        if self.seconds is None or self.started or not waiting or self.interrupted:
            return
        least = min(waiting, key=lambda recipe: self.estimates.seconds(recipe.key) / self.estimates.pieces(recipe.key))
        needed = self.estimates.seconds(least.key)
        raise BadValue(
            f"--minutes {self.seconds / 60:g} is too short for anything: {least.label()} takes about {span(needed)}.",
            "give more minutes",
        )


def run_here(course: Course, maker: Maker) -> None:
    """All in this process.  What did not fit together is tried one by one; what fails alone is not tried again."""
    maker.prepare()
    while handed := course.next():
        together = len(handed) > 1
        maker.make(_documents(handed), partial(course.hear, again=together), course.must_stop)


def run_in(crew: Crew, course: Course) -> None:
    """All in the workers of a crew, which is closed in the end."""
    asked_at = None
    try:
        while True:
            while crew.has_room() and (handed := course.next()):
                if course.queue.states[handed[0].key].alone:
                    crew.dismiss()
                crew.hand(handed)
            if not course.running:
                return
            for event in crew.events(WAIT_S):
                course.hear(event)
            course.view.draw(course.where)
            if course.must_stop() and asked_at is None:
                asked_at = course.clock()
                crew.ask_to_stop()
            if asked_at is not None and course.clock() >= asked_at + course.reserve_s / 2:
                return
    finally:
        course.leave()
        crew.close()


def _documents(recipes: Sequence[Recipe]) -> list[str]:
    return [to_json(recipe) for recipe in recipes]
