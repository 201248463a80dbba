"""Which recipe runs next: the graph of a grid while it is being worked off.  Pure bookkeeping, no Ray.

A recipe is *waiting* (a parent is missing), *ready*, *running*, or settled: *done*, *reused*, or closed with a status
and a reason.  Ready recipes go out teachers first, then statistics, then evaluations, then sets: an evaluation starts
as soon as its set is there, while other sets are still being made; within a kind, in the order of the grid.  But what
would otherwise be left over at the end goes first: a recipe from which a path leads (its set's evaluation, say) that is
long beside all that is left to do.

A trial takes one recipe, or several that are trained together (a pack, which the caller chooses): each is running by
itself, and together they take of a machine what one of them takes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rd3.recipe import Key

URGENT = 0.25
"""Of the time that all the work left would take on the devices there are: a path as long as this goes first."""
STATES = ("done", "reused", "running", "failed", "waiting")
_RANK = {"teacher": 0, "statistics": 1, "evaluation": 2, "set": 3, "share": 3}


class Queued(Protocol):
    """What a queue hands out: a recipe, or what else has a key, parents and a kind with a demand."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> Key: ...

    def parents(self) -> tuple[tuple[str, Key], ...]: ...

    def label(self) -> str: ...


class Closed(NamedTuple):
    """How a recipe ended that is not done."""

    status: str
    reason: str


@dataclass(frozen=True)
class Demand:
    """What one trial takes of a machine."""

    cpus: float
    gpus: float = 0.0
    whole: bool = False
    """Takes whole devices; while one is ready or running, nothing else is handed out (``timing: exclusive``)."""

    def at_a_time(self, cpus: float, gpus: float = 0.0) -> int:
        """How many such trials these devices run at a time; at least one."""
        parts = [(cpus, self.cpus), (gpus, self.gpus)]
        return max(1, math.floor(min(there / taken + 1e-9 for there, taken in parts if taken)))


class RecipeQueue:
    """Hands out recipes whose parents are done, and closes what can no longer be made."""

    def __init__(
        self,
        recipes: Mapping[Key, Queued],
        *,
        reused: Iterable[Key] = (),
        closed: Mapping[Key, Closed] | None = None,
        demands: Mapping[str, Demand],
        after: Mapping[Key, Collection[Key]] | None = None,
        costs_s: Mapping[Key, float] | None = None,
    ):
        """``recipes``: all of a grid, parents first; ``demands`` by kind.

        A parent that is not among the recipes counts as done.  ``after``: recipes that wait until others are
        settled, however these end (small sets that are taken out of a larger one, sets that are made in shares).
        ``costs_s``: what recipes are expected to take; without, long paths are not known and nothing is urgent.
        """
        self.costs_s = dict(costs_s or {})
        self.after = dict(after or {})
        self.recipes = dict(recipes)
        self.demands = dict(demands)
        self.order = {key: place for place, key in enumerate(self.recipes)}
        self.reused = {key for key in reused if key in self.recipes}
        self.done: set[Key] = set()
        self.ready: set[Key] = set()
        """What could start now."""
        self.running: set[Key] = set()
        self.closed: dict[Key, Closed] = {}
        self.children: dict[Key, list[Key]] = {}
        self._missing: dict[Key, set[Key]] = {}
        self._by_rank: dict[bool, list[tuple[int, int, Key]]] = {True: [], False: []}
        self._longest: list[tuple[float, int, Key]] = []
        self._used = [0.0, 0.0]
        self._pack_of: dict[Key, set[Key]] = {}
        """What runs in the trial of a running recipe, itself included."""
        for key, recipe in self.recipes.items():
            for _kind, parent in recipe.parents():
                self.children.setdefault(parent, []).append(key)
        self._waiting_for: dict[Key, list[Key]] = {}
        for key, others in self.after.items():
            for first in others:
                self._waiting_for.setdefault(first, []).append(key)
        self.path_s: dict[Key, float] = {}
        """Seconds from the start of a recipe to the end of the longest chain of what is made from it."""
        for key in self.recipes:
            self._measure_path(key)
        self._state: dict[Key, str] = {}
        self._counts: dict[str, dict[str, int]] = {}
        for key in self.recipes:
            self._move(key, "reused" if key in self.reused else "waiting")
        self._left_s = sum(self.costs_s.get(key, 0.0) for key in self.recipes if key not in self.reused)
        for key in self.recipes:
            if key not in self.reused:
                self._await_parents(key)
        for key, how in (closed or {}).items():
            if key in self.recipes:
                self.close(key, how.status, how.reason)

    def later(self, key: Key) -> tuple[Key, ...]:
        """What waits for a recipe: what is made from it, and what ``after`` holds back."""
        return (*self.children.get(key, ()), *self._waiting_for.get(key, ()))

    def _measure_path(self, key: Key) -> float:
        if key not in self.path_s:
            below = max(map(self._measure_path, self.later(key)), default=0.0)
            self.path_s[key] = self.costs_s.get(key, 0.0) + below
        return self.path_s[key]

    def _await_parents(self, key: Key) -> None:
        parents = {parent for _kind, parent in self.recipes[key].parents()}
        parents.update(first for first in self.after.get(key, ()) if first not in self.closed)
        self._missing[key] = {parent for parent in parents if parent in self.recipes and not self._there(parent)}
        if not self._missing[key]:
            self._make_ready(key)

    def _make_ready(self, key: Key) -> None:
        if key in self.closed:
            return
        self.ready.add(key)
        whole = self.demand(key).whole
        heapq.heappush(self._by_rank[whole], (_RANK[self.recipes[key].kind], self.order[key], key))
        if not whole:
            heapq.heappush(self._longest, (-self.path_s[key], self.order[key], key))

    def _there(self, key: Key) -> bool:
        return key in self.reused or key in self.done

    def demand(self, key: Key) -> Demand:
        return self.demands[self.recipes[key].kind]

    def _first(self, heap: list[tuple[Any, int, Key]]) -> Key | None:
        """The first ready recipe of a heap; what has gone out since it was pushed is dropped on the way."""
        while heap and heap[0][2] not in self.ready:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def _urgent(self, devices: float) -> Key | None:
        """The ready recipe with the longest path, where that would be left over at the end."""
        key = self._first(self._longest)
        if key is None or not self.path_s[key]:
            return None
        return key if self.path_s[key] >= self.long_s(devices) else None

    def long_s(self, devices: float) -> float:
        """Planned seconds from which on something is long beside all that is left, and may be left over at the end."""
        return URGENT * self._left_s / devices

    @property
    def finished(self) -> bool:
        """Nothing is running and nothing can start."""
        return not self.running and not self.ready

    def take(self, cpus: float, gpus: float = 0.0, at_once: float = math.inf) -> Queued | None:
        """The next recipe to start on a cluster with so many devices in all, or None.

        ``at_once``: no more than so many are going to run at a time, which the caller sees to.

        A ready recipe that takes whole devices holds back all others until it has run, so it cannot starve.  When
        nothing runs, the next recipe goes out even if it does not fit: a cluster that grows on demand must see it.
        """
        if any(self.demand(key).whole for key in self.running):
            return None
        devices = max(1.0, min(gpus or cpus, at_once))
        key = self._first(self._by_rank[True]) or self._urgent(devices) or self._first(self._by_rank[False])
        if key is None:
            return None
        demand = self.demand(key)
        too_much = self._used[0] + demand.cpus > cpus + 1e-9 or self._used[1] + demand.gpus > gpus + 1e-9
        if too_much and self.running:
            return None
        self._use(demand, 1)
        self._start(key, {key})
        return self.recipes[key]

    def join(self, key: Key, others: Iterable[Key]) -> None:
        """``others``, which are ready, run in the trial of ``key``: on what that takes, until the last has ended."""
        for other in others:
            self._pack_of[key].add(other)
            self._start(other, self._pack_of[key])

    def _start(self, key: Key, pack: set[Key]) -> None:
        self.ready.discard(key)
        self.running.add(key)
        self._pack_of[key] = pack
        self._move(key, "running")

    def _use(self, demand: Demand, sign: int) -> None:
        self._used[0] += sign * demand.cpus
        self._used[1] += sign * demand.gpus

    def _stop_running(self, key: Key) -> None:
        if key in self.running:
            self.running.discard(key)
            pack = self._pack_of.pop(key)
            pack.discard(key)
            if not pack:
                self._use(self.demand(key), -1)

    def finish(self, key: Key) -> None:
        """``key`` is in the ledger now; its children may become ready."""
        self._stop_running(key)
        self.done.add(key)
        self._move(key, "done")
        self._left_s -= self.costs_s.get(key, 0.0)
        self._settle(key, self.later(key))

    def _settle(self, key: Key, waiting: Iterable[Key]) -> None:
        """``key`` holds these back no longer."""
        for child in waiting:
            missing = self._missing.get(child, set())
            if key in missing:
                missing.discard(key)
                if not missing:
                    self._make_ready(child)

    def close(self, key: Key, status: str, reason: str) -> None:
        """``key`` will not be made by this run; what is made from it is closed as ``blocked``."""
        self._stop_running(key)
        self.ready.discard(key)
        self.closed[key] = Closed(status, reason)
        self._move(key, "failed")
        self._left_s -= self.costs_s.get(key, 0.0)
        for child in self.children.get(key, ()):
            if child not in self.closed and not self._there(child) and child not in self.running:
                what = self.recipes[key].label()
                cause = reason if status == "blocked" else f"its {what} ({key[:12]}) ended as {status}: {reason}"
                self.close(child, "blocked", cause)
        self._settle(key, self._waiting_for.get(key, ()))

    def again(self, key: Key) -> None:
        """``key`` goes back: its process died, or its artifact turned out to be gone."""
        self._stop_running(key)
        if self._there(key):
            self._left_s += self.costs_s.get(key, 0.0)
        self.done.discard(key)
        self.reused.discard(key)
        self._move(key, "waiting")
        self._await_parents(key)
        for child in self.children.get(key, ()):
            if child not in self.closed and not self._there(child) and child not in self.running:
                self._missing[child].add(key)
                self.ready.discard(child)

    def counts(self) -> dict[str, dict[str, int]]:
        """By kind: how many are done, reused, running, failed and waiting."""
        return {kind: dict(row) for kind, row in self._counts.items()}

    def state(self, key: Key) -> str:
        """One of ``done``, ``reused``, ``running``, ``failed``, ``waiting``."""
        return self._state[key]

    def _move(self, key: Key, state: str) -> None:
        """Keeps count: after every recipe somebody asks, of ten thousand."""
        row = self._counts.setdefault(self.recipes[key].kind, dict.fromkeys(STATES, 0))
        if key in self._state:
            row[self._state[key]] -= 1
        self._state[key] = state
        row[state] += 1
