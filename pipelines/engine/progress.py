"""Progress of a running grid: a live view on a terminal, one line per change in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.engine.eta import Eta
from pipelines.grid.queue import STATES, RecipeQueue
from pipelines.terminal import PlainConsole, printable
from rd3.campaign.running import CHECKPOINT_UNUSABLE, Running
from rd3.duration import duration
from rd3.recipe import KINDS, Key

SILENCE_S = 30.0
"""Longest interval without a log line while recipes make progress."""
REFRESH_S = 1.0
"""Minimum interval between two computations of the remaining time, which visit every recipe."""


def plural(kind: str) -> str:
    """``sets``, ``statistics``."""
    return KINDS[kind].plural if kind in KINDS else f"{kind}s"


class View:
    """Progress of a queue; shows nothing itself.  The driver calls ``started``, ``moved``, ``packed`` and ``ended``."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, labels: Mapping[Key, str]):
        """``labels``: display names of recipes that have another than ``recipe.label()``."""
        self.name, self.queue, self.eta, self.labels = name, queue, eta, labels
        self.running: dict[Key, Running] = {}
        self.note = ""
        self._began = time.monotonic()
        self._left = (float("-inf"), 0.0)
        """(time of the computation, remaining seconds)."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def show_note(self, note: str) -> None:
        """Show what the driver itself is doing."""
        self.note = note

    def started(self, key: Key, pack: int = 1, *, logits_read: bool = False) -> None:
        """``pack``: number of recipes in its trial; ``logits_read``: whether it may read cached teacher logits."""
        self.running[key] = Running(time.monotonic(), pack=pack, logits_read=logits_read)

    def packed(self, key: Key, pack: int, *, logits_read: bool = False) -> None:
        """What the entry of a finished recipe says, before ``ended``: its pack, and whether it did read cached logits.

        That may have been in an earlier attempt.
        """
        if key in self.running:
            self.running[key].pack = max(self.running[key].pack, pack)
            self.running[key].logits_read = logits_read

    def moved(self, key: Key, fraction: float, note: str) -> None:
        if key in self.running:
            self.running[key].report(time.monotonic(), fraction, note)

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        item = self.running.pop(key, None)
        if item is not None and status == "done" and item.pack == 1 and not item.logits_read:
            self.eta.finished(key, self.queue.recipes[key].kind, item, time.monotonic())

    def named(self, key: Key) -> str:
        """The display name of a recipe or share, and the beginning of its key."""
        return f"{self.labels.get(key) or self.queue.recipes[key].label()} {key[:8]}"

    def counts_line(self) -> str:
        """``sets 2/6, evaluations 3/24 (1 failed)``."""
        parts = []
        for kind, row in self.queue.counts().items():
            failed = f" ({row['failed']} failed)" if row["failed"] else ""
            parts.append(f"{plural(kind)} {row['done'] + row['reused']}/{sum(row.values())}{failed}")
        return ", ".join(parts)

    def elapsed(self) -> str:
        return duration(time.monotonic() - self._began)

    def left(self) -> str:
        now = time.monotonic()
        if now - self._left[0] > REFRESH_S:
            running = dict(self.running)  # a live view asks in its own thread, while the driver changes these
            self._left = now, self.eta.left_s(self.queue, running, now)
        return duration(self._left[1]) if self._left[1] else "unknown"


class LineView(View):
    """For logs: one line for every recipe that ends, and occasional lines for running ones."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, labels: Mapping[Key, str], out: TextIO):
        super().__init__(name, queue, eta, labels)
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
        if note.startswith(CHECKPOINT_UNUSABLE) or time.monotonic() - self._last_line >= SILENCE_S:
            self._line(self._with_counts(f"{self.named(key)}: {100 * fraction:.0f} %, {note}"))

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        item = self.running.get(key)
        took = f" in {duration(time.monotonic() - item.since)}" if item else ""
        super().ended(key, status, reason)
        why = f": {reason}" if reason else ""
        self._line(self._with_counts(f"{self.named(key)}: {status}{took}{why}"))

    def _with_counts(self, what: str) -> str:
        left = f", {self.left()} left" if self.queue.counts() and not self.queue.finished else ""
        return f"{what} | {self.counts_line()}, {self.elapsed()}{left}"


class LiveView(View):
    """For terminals: a table that is redrawn twice per second from the latest reports."""

    def __init__(self, name: str, queue: RecipeQueue, eta: Eta, labels: Mapping[Key, str], console: Console):
        super().__init__(name, queue, eta, labels)
        self._problems: list[str] = []
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=2, transient=False)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._live.stop()

    def moved(self, key: Key, fraction: float, note: str) -> None:
        super().moved(key, fraction, note)
        if note.startswith(CHECKPOINT_UNUSABLE):
            self._problems.append(f"{self.named(key)}: {note}")

    def ended(self, key: Key, status: str, reason: str = "") -> None:
        super().ended(key, status, reason)
        if status != "done":
            self._problems.append(f"{self.named(key)}: {status}: {reason}")

    def draw(self) -> Group:
        """The complete view."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for column in STATES:
            table.add_column(column, justify="right")
        for kind, row in self.queue.counts().items():
            table.add_row(plural(kind), *(str(row[column]) for column in STATES))
        parts: list[Table | Text] = [table]
        now = time.monotonic()
        for key, item in list(self.running.items()):
            took = duration(now - item.since)
            line = f"  {self.named(key):<52.52} {100 * item.fraction:3.0f} %  {took:>11}  {item.note}"
            parts.append(Text(printable(line), no_wrap=True, overflow="ellipsis"))
        for problem in self._problems[-5:]:
            parts.append(Text(printable(f"  {problem}"), style="red", no_wrap=True, overflow="ellipsis"))
        left = "" if self.queue.finished else f", {self.left()} left"
        clock = f"{self.name}: {self.elapsed()} elapsed{left}"
        parts.append(Text(printable(f"{clock}   {self.note}"), style="dim"))
        return Group(*parts)


def open_view(
    name: str, queue: RecipeQueue, eta: Eta, labels: Mapping[Key, str], out: TextIO, *, wanted: bool = True
) -> View:
    """The view for ``out``: live on a terminal, lines elsewhere, nothing unless ``wanted``."""
    if not wanted:
        return View(name, queue, eta, labels)
    console = PlainConsole(file=out)
    if console.is_terminal:
        return LiveView(name, queue, eta, labels, console)
    return LineView(name, queue, eta, labels, out)
