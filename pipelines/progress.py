"""What a person sees while a grid runs: one calm live view, or a line a change where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.queue import RecipeQueue
from rd3.recipe import Key

SILENCE_S = 30.0
"""Longest time that a log says nothing while something moves."""
COLUMNS = ("done", "reused", "running", "failed", "waiting")


@dataclass
class Running:
    """One recipe that a trial is making."""

    since: float
    fraction: float = 0.0
    note: str = ""


class Eta:
    """Time that is left: planned costs, corrected by what finished recipes of each kind really took."""

    def __init__(self, costs_s: Mapping[Key, float], parallel: int = 1):
        self.costs_s = costs_s
        self.parallel = max(1, parallel)
        self._planned: dict[str, float] = {}
        self._spent: dict[str, float] = {}

    def finished(self, key: Key, kind: str, spent_s: float) -> None:
        self._planned[kind] = self._planned.get(kind, 0.0) + self.costs_s.get(key, 0.0)
        self._spent[kind] = self._spent.get(kind, 0.0) + spent_s

    def _factor(self, kind: str) -> float:
        """Real over planned: of this kind, else of all that finished, else 1."""
        planned, spent = self._planned.get(kind, 0.0), self._spent.get(kind, 0.0)
        if not planned:
            planned, spent = sum(self._planned.values()), sum(self._spent.values())
        return spent / planned if planned else 1.0

    def left_s(self, queue: RecipeQueue, running: Mapping[Key, Running]) -> float:
        """Seconds until all that can be made is made, if the trials stay busy."""
        work = longest = 0.0
        for key, recipe in queue.recipes.items():
            if queue.state(key) in ("running", "waiting"):
                share = 1.0 - running[key].fraction if key in running else 1.0
                cost = self.costs_s.get(key, 0.0) * self._factor(recipe.kind) * share
                work, longest = work + cost, max(longest, cost)
        return max(longest, work / self.parallel)


def span(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(kind: str) -> str:
    """``sets``, ``statistics``."""
    return kind if kind.endswith("s") else f"{kind}s"


class View:
    """Follows a queue.  ``started``, ``moved`` and ``ended`` are called by the driver, drawing is up to the view."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, label: Callable[[Key], str] | None = None):
        self.name, self.queue, self.eta = name, queue, eta
        self.label = label or (lambda key: queue.recipes[key].label())
        self.running: dict[Key, Running] = {}
        self.note = ""
        self._began = time.monotonic()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_exc: object) -> None:
        return None

    def say(self, note: str) -> None:
        """What the driver itself is doing."""
        self.note = note

    def started(self, key: Key) -> None:
        self.running[key] = Running(time.monotonic())

    def moved(self, key: Key, fraction: float, note: str) -> None:
        if key in self.running:
            self.running[key].fraction, self.running[key].note = fraction, note

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        item = self.running.pop(key, None)
        if item is not None and status == "done":
            self.eta.finished(key, self.queue.recipes[key].kind, time.monotonic() - item.since)

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
        seconds = self.eta.left_s(self.queue, self.running)
        return span(seconds) if seconds else "unknown"


class LineView(View):
    """A line for everything that ends, for logs, and now and then one for what is on its way."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, label: Callable[[Key], str] | None, out: TextIO):
        super().__init__(name, queue, eta, label)
        self.out = out
        self._said = time.monotonic()

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        self.out.write(text + "\n")
        self.out.flush()

    def say(self, note: str) -> None:
        if note and note != self.note:
            self._line(f"{self.name}: {note}")
        super().say(note)

    def moved(self, key: Key, fraction: float, note: str) -> None:
        super().moved(key, fraction, note)
        if time.monotonic() - self._said >= SILENCE_S:
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
    """A table that redraws itself twice a second, from what the driver last said."""

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
        """The whole view."""
        counts = self.queue.counts()
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for kind, row in counts.items():
            table.add_row(plural(kind), *(str(row[column]) for column in COLUMNS))
        parts: list[Table | Text] = [table]
        now = time.monotonic()
        for key, item in list(self.running.items()):
            what, took = f"{self.label(key)} {key[:8]}", span(now - item.since)
            row = f"  {what:<52.52} {100 * item.fraction:3.0f} %  {took:>11}  {item.note}"
            parts.append(Text(row, no_wrap=True, overflow="ellipsis"))
        for problem in self._problems[-5:]:
            parts.append(Text(f"  {problem}", style="red", no_wrap=True, overflow="ellipsis"))
        clock = f"{self.name}: {self.elapsed()} elapsed, {self.left()} left"
        parts.append(Text(f"{clock}   {self.note}", style="dim"))
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
    """The view that suits ``out``: live on a terminal, lines elsewhere, nothing if not ``wanted``."""
    if not wanted:
        return View(name, queue, eta, label)
    console = Console(file=out, highlight=False)
    if console.is_terminal:
        return LiveView(name, queue, eta, label, console)
    return LineView(name, queue, eta, label, out)
