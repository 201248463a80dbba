"""Progress of a running grid: a live view on a terminal, one line per change in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.grid.queue import STATES, Demand, RecipeQueue
from pipelines.terminal import open_console, printable
from rd3.campaign.view import span
from rd3.recipe import KINDS, Key

SILENCE_S = 30.0
"""Longest interval without a log line while recipes make progress."""
RESUMED = 0.25
"""A recipe whose first report comes before this fraction of the planned time was started by an earlier attempt."""
PRIOR_S = 60.0
"""Weight of the planned time in seconds beside measured times: the first recipe of a worker, which loads modules, says
little about recipes that are planned to take hours."""
REFRESH_S = 1.0
"""Minimum interval between two computations of the remaining time, which visit every recipe."""


@dataclass
class Running:
    """One running recipe.  All times are of the same clock, in seconds."""

    since: float
    fraction: float = 0.0
    note: str = ""
    first: tuple[float, float] | None = None
    """(time, fraction) of the first report; earlier progress may be of an earlier attempt."""
    reported: float = 0.0
    """Time of the last report."""
    pack: int = 1
    """Number of recipes in the trial; times in a pack say little about a recipe that runs alone."""

    def report(self, now: float, fraction: float, note: str) -> None:
        self.fraction, self.note, self.reported = fraction, note, now
        self.first = self.first or (now, fraction)

    @property
    def pace(self) -> tuple[float, float] | None:
        """(seconds, fraction) between the first and the last report; None without progress between them."""
        if self.first is None or self.fraction <= self.first[1]:
            return None
        return self.reported - self.first[0], self.fraction - self.first[1]


class Spent(NamedTuple):
    """Planned and actual seconds of some work."""

    planned_s: float = 0.0
    spent_s: float = 0.0

    def and_also(self, planned_s: float, spent_s: float) -> Spent:
        return Spent(self.planned_s + planned_s, self.spent_s + spent_s)


def own_left_s(item: Running, now: float) -> float | None:
    """Remaining seconds of a running recipe by its own pace; None if the pace is unknown."""
    if item.pace is None:
        return None
    seconds, done = item.pace
    return max(0.0, (1.0 - item.fraction) * seconds / done - (now - item.reported))


def expected_left_s(total_s: float, item: Running, now: float) -> float:
    """Remaining seconds of a running recipe with expected duration ``total_s``, before its own pace is known.

    If it has already taken longer, a tenth of the elapsed time, as a guess.
    """
    return max((1.0 - item.fraction) * total_s - (now - (item.reported or item.since)), 0.1 * (now - item.since))


class Eta:
    """Remaining time: planned costs, corrected by the measured times of recipes of the same kind and network.

    Uses finished recipes, and the progress of running ones between two reports; packs do not count, as plans are for
    recipes that run alone.
    """

    def __init__(
        self,
        costs_s: Mapping[Key, float],
        parallel: float = 1,
        *,
        networks: Mapping[Key, str] | None = None,
        takes: Callable[[Demand], float] = lambda demand: 1.0,
    ):
        """``parallel``: number of devices, of which a recipe takes ``takes(its demand)``.

        ``networks``: the network of a recipe, if any.
        """
        self.costs_s = costs_s
        self.parallel = max(1.0, parallel)
        self.networks = networks or {}
        self.takes = takes
        self._finished: dict[tuple[str, ...], Spent] = {}

    def groups(self, kind: str, key: Key) -> tuple[tuple[str, ...], ...]:
        """Groups of similar recipes, the most similar first: same kind and network, same kind, all."""
        return (kind, self.networks.get(key, "")), (kind,), ()

    def finished(self, key: Key, kind: str, item: Running, now: float) -> None:
        """Record a finished recipe, without the work of earlier attempts."""
        since, before = item.since, 0.0
        if item.first is not None:
            began, share = item.first
            if began - since < RESUMED * share * self.costs_s.get(key, 0.0):
                since, before = item.first
        self._add(self._finished, key, kind, 1.0 - before, now - since)

    def _add(self, totals: dict[tuple[str, ...], Spent], key: Key, kind: str, share: float, spent_s: float) -> None:
        planned_s = share * self.costs_s.get(key, 0.0)
        for group in self.groups(kind, key):
            totals[group] = totals.get(group, Spent()).and_also(planned_s, spent_s)

    def _learnt(self, queue: RecipeQueue, running: Mapping[Key, Running]) -> dict[tuple[str, ...], Spent]:
        totals = dict(self._finished)
        for key, item in running.items():
            if item.pace is not None and item.pack == 1:
                seconds, done = item.pace
                self._add(totals, key, queue.recipes[key].kind, done, seconds)
        return totals

    def left_s(self, queue: RecipeQueue, running: Mapping[Key, Running], now: float) -> float:
        """Seconds until all runnable recipes are done, if the devices stay busy.

        At least the remaining time of every running recipe and of the longest remaining chain.
        """
        learnt = self._learnt(queue, running)
        left: dict[Key, float] = {}
        device_s = 0.0
        for key, recipe in queue.recipes.items():
            if queue.state(key) not in ("running", "waiting"):
                continue
            groups = self.groups(recipe.kind, key)
            factor = _factor(learnt, groups)
            total_s = self.costs_s.get(key, 0.0) * factor
            pack = running[key].pack if key in running else 1
            own_s = own_left_s(running[key], now) if key in running else None
            if own_s is not None:
                left[key] = own_s
            else:
                left[key] = expected_left_s(pack * total_s, running[key], now) if key in running else total_s
            # Plans are for whole devices; measured times are for the fraction that a recipe takes.
            measured = own_s is not None or any(group in learnt for group in groups[:-1])
            device_s += left[key] / pack * (self.takes(queue.demand(key)) if measured else 1.0)
        return max(_longest_chain(queue, left), device_s / self.parallel)


def _factor(learnt: Mapping[tuple[str, ...], Spent], groups: Sequence[tuple[str, ...]]) -> float:
    """Actual over planned time: a shrinkage estimate from the largest group (prior 1) to the most similar one."""
    factor = 1.0
    for group in reversed(groups):
        planned_s, spent_s = learnt.get(group, Spent())
        factor = (spent_s + PRIOR_S * factor) / (planned_s + PRIOR_S)
    return factor


def _longest_chain(queue: RecipeQueue, left: Mapping[Key, float]) -> float:
    """Seconds of the longest chain of dependent recipes."""
    until_done: dict[Key, float] = {}

    def measured(key: Key) -> float:
        if key not in until_done:
            later = [child for child in queue.later(key) if child in left]
            until_done[key] = left[key] + max(map(measured, later), default=0.0)
        return until_done[key]

    return max(map(measured, left), default=0.0)


def plural(kind: str) -> str:
    """``sets``, ``statistics``."""
    return KINDS[kind].plural if kind in KINDS else f"{kind}s"


class View:
    """Progress of a queue.  The driver calls ``started``, ``moved`` and ``ended``; subclasses draw."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, label: Callable[[Key], str] | None = None):
        self.name, self.queue, self.eta = name, queue, eta
        self.label = label or (lambda key: queue.recipes[key].label())
        self.running: dict[Key, Running] = {}
        self.note = ""
        self._began = time.monotonic()
        self._left = (float("-inf"), 0.0)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def show_note(self, note: str) -> None:
        """Show what the driver itself is doing."""
        self.note = note

    def started(self, key: Key, pack: int = 1) -> None:
        """``pack``: number of recipes in its trial."""
        self.running[key] = Running(time.monotonic(), pack=pack)

    def packed(self, key: Key, pack: int) -> None:
        """A recipe ran in a pack of this size, possibly in an earlier attempt."""
        if key in self.running:
            self.running[key].pack = max(self.running[key].pack, pack)

    def moved(self, key: Key, fraction: float, note: str) -> None:
        if key in self.running:
            self.running[key].report(time.monotonic(), fraction, note)

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        item = self.running.pop(key, None)
        if item is not None and status == "done" and item.pack == 1:
            self.eta.finished(key, self.queue.recipes[key].kind, item, time.monotonic())

    def counts_line(self) -> str:
        """``sets 2/6, evaluations 3/24 (1 failed)``."""
        parts = []
        for kind, row in self.queue.counts().items():
            failed = f" ({row['failed']} failed)" if row["failed"] else ""
            parts.append(f"{plural(kind)} {row['done'] + row['reused']}/{sum(row.values())}{failed}")
        return ", ".join(parts)

    def elapsed(self) -> str:
        return span(time.monotonic() - self._began)

    def left(self) -> str:
        now = time.monotonic()
        if now - self._left[0] > REFRESH_S:
            self._left = now, self.eta.left_s(self.queue, self.running, now)
        return span(self._left[1]) if self._left[1] else "unknown"


class LineView(View):
    """For logs: one line for every recipe that ends, and occasional lines for running ones."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, label: Callable[[Key], str] | None, out: TextIO):
        super().__init__(name, queue, eta, label)
        self.out = out
        self._last_line = time.monotonic()

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.out.write(printable(text) + "\n")
        self.out.flush()

    def show_note(self, note: str) -> None:
        if note and note != self.note:
            self._line(f"{self.name}: {note}")
        super().show_note(note)

    def moved(self, key: Key, fraction: float, note: str) -> None:
        super().moved(key, fraction, note)
        if time.monotonic() - self._last_line >= SILENCE_S:
            self._line(self._with_counts(f"{self.label(key)} {key[:8]}: {100 * fraction:.0f} %, {note}"))

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        item = self.running.get(key)
        took = f" in {span(time.monotonic() - item.since)}" if item else ""
        super().ended(key, status, reason)
        what = f"{self.label(key)} {key[:8]}: {status}{took}"
        self._line(self._with_counts(f"{what}{': ' + reason if reason else ''}"))

    def _with_counts(self, what: str) -> str:
        left = f", {self.left()} left" if self.queue.counts() and not self.queue.finished else ""
        return f"{what} | {self.counts_line()}, {self.elapsed()}{left}"


class LiveView(View):
    """For terminals: a table that is redrawn twice per second from the latest reports."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, label: Callable[[Key], str] | None, console: Console):
        super().__init__(name, queue, eta, label)
        self._problems: list[str] = []
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=2, transient=False)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._live.stop()

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        super().ended(key, status, reason)
        if status != "done":
            self._problems.append(f"{self.label(key)} {key[:8]}: {status}: {reason}")

    def draw(self) -> Group:
        """The complete view."""
        counts = self.queue.counts()
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for column in STATES:
            table.add_column(column, justify="right")
        for kind, row in counts.items():
            table.add_row(plural(kind), *(str(row[column]) for column in STATES))
        parts: list[Table | Text] = [table]
        now = time.monotonic()
        for key, item in list(self.running.items()):
            what, took = f"{self.label(key)} {key[:8]}", span(now - item.since)
            line = f"  {what:<52.52} {100 * item.fraction:3.0f} %  {took:>11}  {item.note}"
            parts.append(Text(printable(line), no_wrap=True, overflow="ellipsis"))
        for problem in self._problems[-5:]:
            parts.append(Text(printable(f"  {problem}"), style="red", no_wrap=True, overflow="ellipsis"))
        clock = f"{self.name}: {self.elapsed()} elapsed, {self.left()} left"
        parts.append(Text(printable(f"{clock}   {self.note}"), style="dim"))
        return Group(*parts)


def open_view(
    name: str,
    queue: RecipeQueue,
    eta: Eta,
    *,
    label: Callable[[Key], str] | None = None,
    wanted: bool = True,
    out: TextIO,
) -> View:
    """The view for ``out``: live on a terminal, lines elsewhere, nothing unless ``wanted``."""
    if not wanted:
        return View(name, queue, eta, label)
    console = open_console(out)
    if console.is_terminal:
        return LiveView(name, queue, eta, label, console)
    return LineView(name, queue, eta, label, out)
