"""Scheduling: the dependency graph of a grid during a run, and which recipe starts next.  Independent of Ray.

A recipe is *waiting* (a parent is missing), *ready*, *running*, or settled: *done*, *reused*, or unsuccessful, with a
status and a reason.  Ready recipes start in the order teachers, statistics, evaluations, sets, so that an evaluation
starts as soon as its set is available, while other sets are still being generated; within a kind, in the order of the
grid.  Recipes on a critical path go first: those whose path to the end is long compared to all remaining work.

A trial runs one recipe, or a pack of several that are trained together (chosen by the caller): each has its own state,
and together they use the resources of one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rd3.recipe import KINDS, Key

URGENT = 0.25
"""A recipe goes first if its path takes at least this fraction of all remaining work divided by the devices."""
STATES = ("done", "reused", "running", "failed", "waiting")


class Scheduling(NamedTuple):
    """How recipes of a kind are scheduled."""

    rank: int = 0
    """Ready recipes of a lower rank start first."""
    share_gpu: bool = False
    """Several run on one GPU; otherwise each takes a whole one, as its run time is a result."""
    exclusive: bool = False
    """Takes all cores of a machine under ``timing: exclusive``."""


SCHEDULING: dict[str, Scheduling] = {
    "statistics": Scheduling(rank=1),
    "evaluation": Scheduling(rank=2, share_gpu=True),
    "robustness": Scheduling(rank=2, share_gpu=True),
    "set": Scheduling(rank=3, exclusive=True),
    "share": Scheduling(rank=3),
}
"""By kind, where it differs from the defaults; a share of a set is queued like a recipe."""


def scheduling(kind: str) -> Scheduling:
    return SCHEDULING.get(kind, Scheduling())


class Queued(Protocol):
    """What a queue hands out: a recipe, or a share of a set; ``kind`` decides its demand."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> Key: ...

    def parents(self) -> tuple[tuple[str, Key], ...]: ...

    def label(self) -> str: ...


class Unsuccessful(NamedTuple):
    """How an unsuccessful recipe ended."""

    status: str
    reason: str


@dataclass(frozen=True)
class Demand:
    """Resources of one trial."""

    cpus: float
    gpus: float = 0.0
    whole: bool = False
    """Takes whole devices; while one is ready or running, nothing else starts (``timing: exclusive``)."""

    def at_a_time(self, cpus: float, gpus: float = 0.0) -> int:
        """Number of such trials that these devices run in parallel; at least one."""
        parts = [(cpus, self.cpus), (gpus, self.gpus)]
        return max(1, math.floor(min(there / taken + 1e-9 for there, taken in parts if taken)))


def demands(cores: float, gpus: bool, *, exclusive: bool, gpu_share: float) -> dict[str, Demand]:
    """Resources per trial of each kind on machines of up to ``cores`` cores, with GPUs or without.

    One core each on CPUs.  On GPUs, a set or a teacher takes a whole one, because generation time is a result, and
    evaluations share (``gpu_share``).  ``exclusive`` gives a set all cores of a machine.
    """

    def demand(how: Scheduling) -> Demand:
        whole, gpu = exclusive and how.exclusive, gpu_share if how.share_gpu else 1.0
        return Demand(cores if whole else 1.0, gpu if gpus else 0.0, whole=whole)

    return {kind: demand(scheduling(kind)) for kind in (*KINDS, *SCHEDULING)}


class RecipeQueue:
    """Hands out recipes whose parents are done, and closes those that can no longer run."""

    def __init__(
        self,
        recipes: Mapping[Key, Queued],
        *,
        reused: Iterable[Key] = (),
        unsuccessful: Mapping[Key, Unsuccessful] | None = None,
        demands: Mapping[str, Demand],
        after: Mapping[Key, Collection[Key]] | None = None,
        costs_s: Mapping[Key, float] | None = None,
    ):
        """``recipes``: all recipes of a grid, parents first; ``demands``: by kind.

        A parent that is not among the recipes counts as done.  ``after``: recipes that wait until others are
        settled, whether or not these succeed (small sets taken from a larger one, sets generated in shares).
        ``costs_s``: expected seconds per recipe; without them, no path has priority.
        """
        self.costs_s = dict(costs_s or {})
        self.after = dict(after or {})
        self.recipes = dict(recipes)
        self.demands = dict(demands)
        self.order = {key: place for place, key in enumerate(self.recipes)}
        self.ready: set[Key] = set()
        """Recipes that could start now."""
        self.running: set[Key] = set()
        self.unsuccessful: dict[Key, Unsuccessful] = {}
        self.children: dict[Key, list[Key]] = {}
        self._missing: dict[Key, set[Key]] = {}
        self._by_rank: dict[bool, list[tuple[int, int, Key]]] = {True: [], False: []}
        """Heaps of (rank of the kind, place in the grid, key), of recipes that take whole devices and of others."""
        self._longest: list[tuple[float, int, Key]] = []
        """Heap of (-path_s, place in the grid, key), of recipes that do not take whole devices."""
        self._used = [0.0, 0.0]
        """[CPUs, GPUs] of the running trials."""
        self._pack_of: dict[Key, set[Key]] = {}
        """The recipes in the trial of a running recipe, including itself."""
        for key, recipe in self.recipes.items():
            for _kind, parent in recipe.parents():
                self.children.setdefault(parent, []).append(key)
        self._waiting_for: dict[Key, list[Key]] = {}
        for key, others in self.after.items():
            for first in others:
                self._waiting_for.setdefault(first, []).append(key)
        self.path_s: dict[Key, float] = {}
        """Seconds from the start of a recipe to the end of its longest chain of descendants."""
        for key in self.recipes:
            self._measure_path(key)
        self._state: dict[Key, str] = {}
        self._counts: dict[str, dict[str, int]] = {}
        there = set(reused)
        for key in self.recipes:
            self._move(key, "reused" if key in there else "waiting")
        waiting = [key for key in self.recipes if key not in there]
        self._left_s = sum(self.costs_s.get(key, 0.0) for key in waiting)
        for key in waiting:
            self._await_parents(key)
        for key, how in (unsuccessful or {}).items():
            if key in self.recipes:
                self.close(key, how.status, how.reason)

    def later(self, key: Key) -> tuple[Key, ...]:
        """The recipes that wait for a recipe: its children, and those held back by ``after``."""
        return (*self.children.get(key, ()), *self._waiting_for.get(key, ()))

    def _measure_path(self, key: Key) -> float:
        if key not in self.path_s:
            below = max(map(self._measure_path, self.later(key)), default=0.0)
            self.path_s[key] = self.costs_s.get(key, 0.0) + below
        return self.path_s[key]

    def _await_parents(self, key: Key) -> None:
        parents = {parent for _kind, parent in self.recipes[key].parents()}
        parents.update(first for first in self.after.get(key, ()) if first not in self.unsuccessful)
        self._missing[key] = {parent for parent in parents if parent in self.recipes and not self._has_result(parent)}
        if not self._missing[key]:
            self._make_ready(key)

    def _make_ready(self, key: Key) -> None:
        if key in self.unsuccessful:
            return
        self.ready.add(key)
        whole = self.demand(key).whole
        heapq.heappush(self._by_rank[whole], (scheduling(self.recipes[key].kind).rank, self.order[key], key))
        if not whole:
            heapq.heappush(self._longest, (-self.path_s[key], self.order[key], key))

    def _has_result(self, key: Key) -> bool:
        return self._state[key] in ("done", "reused")

    def demand(self, key: Key) -> Demand:
        return self.demands[self.recipes[key].kind]

    def _first(self, heap: list[tuple[Any, int, Key]]) -> Key | None:
        """The first ready recipe of a heap; drops recipes that have started since they were pushed."""
        while heap and heap[0][2] not in self.ready:
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def _urgent(self, devices: float) -> Key | None:
        """The ready recipe with the longest path, if it is on a critical path."""
        key = self._first(self._longest)
        if key is None or not self.path_s[key] or self.path_s[key] < self.long_s(devices):
            return None
        return key

    def long_s(self, devices: float) -> float:
        """Planned seconds from which a path counts as critical; also the most that a pack may take.

        Nothing longer should start last, as it would then run alone at the end.
        """
        return URGENT * self._left_s / devices

    @property
    def finished(self) -> bool:
        """Nothing is running and nothing can start."""
        return not self.running and not self.ready

    def take(self, cpus: float, gpus: float = 0.0, at_once: float = math.inf) -> Queued | None:
        """The next recipe to start on a cluster with this many devices in total, or None.

        ``at_once``: maximum number of parallel trials, enforced by the caller.

        A ready recipe that takes whole devices holds back all others until it has run, so that it cannot starve.  If
        nothing runs, the next recipe starts even if it does not fit, so that an autoscaling cluster sees the demand.
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
        """Run the ready recipes ``others`` in the trial of ``key``, which keeps its resources until all have ended."""
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
        """Mark ``key`` as done; its children may become ready."""
        self._stop_running(key)
        self._move(key, "done")
        self._left_s -= self.costs_s.get(key, 0.0)
        self._settle(key, self.later(key))

    def _settle(self, key: Key, waiting: Iterable[Key]) -> None:
        """Let these recipes no longer wait for ``key``."""
        for child in waiting:
            missing = self._missing.get(child, set())
            if key in missing:
                missing.discard(key)
                if not missing:
                    self._make_ready(child)

    def close(self, key: Key, status: str, reason: str) -> None:
        """Record that ``key`` has no result in this run; its descendants are ``blocked``."""
        self._stop_running(key)
        self.ready.discard(key)
        if key not in self.unsuccessful:
            self._left_s -= self.costs_s.get(key, 0.0)
        self.unsuccessful[key] = Unsuccessful(status, reason)
        self._move(key, "failed")
        for child in self.children.get(key, ()):
            if self._state[child] == "waiting":
                self.close(child, "blocked", self._cause(key))
        self._settle(key, self._waiting_for.get(key, ()))

    def _cause(self, parent: Key) -> str:
        """Why what is made from an unsuccessful recipe is blocked."""
        status, reason = self.unsuccessful[parent]
        if status == "blocked":
            return reason
        return f"its {self.recipes[parent].label()} ({parent[:12]}) ended as {status}: {reason}"

    def again(self, key: Key) -> None:
        """Requeue ``key``: its process died, or its artifact is missing.  Blocked if a parent has failed since."""
        self._stop_running(key)
        if self._has_result(key):
            self._left_s += self.costs_s.get(key, 0.0)
        self._move(key, "waiting")
        failed = next((parent for _kind, parent in self.recipes[key].parents() if parent in self.unsuccessful), None)
        if failed is not None:
            self.close(key, "blocked", self._cause(failed))
            return
        self._await_parents(key)
        for child in self.later(key):
            if self._state[child] == "waiting":
                self._missing[child].add(key)
                self.ready.discard(child)

    def counts(self) -> dict[str, dict[str, int]]:
        """Kind to the number of recipes done, reused, running, failed (or blocked) and waiting (or ready)."""
        return {kind: dict(row) for kind, row in self._counts.items()}

    def state(self, key: Key) -> str:
        """One of ``done``, ``reused``, ``running``, ``failed``, ``waiting``."""
        return self._state[key]

    def keys(self, state: str) -> list[Key]:
        """The recipes in a state, in the order of the grid."""
        return [key for key in self.recipes if self._state[key] == state]

    def _move(self, key: Key, state: str) -> None:
        """Change the state of a recipe and update the counts, which are queried after every recipe."""
        row = self._counts.setdefault(self.recipes[key].kind, dict.fromkeys(STATES, 0))
        if key in self._state:
            row[self._state[key]] -= 1
        self._state[key] = state
        row[state] += 1


def simulated_wall_s(queue: RecipeQueue, seconds: Mapping[Key, float], cpus: float, gpus: float = 0.0) -> float:
    """Seconds until ``queue`` is finished on a simulated clock, if every recipe takes its ``seconds``; consumes it."""
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
