"""Output of a campaign: a status line on a terminal, occasional lines in a log, and a summary table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO

from rd3.campaign.queue import Queue
from rd3.campaign.runner import Ended
from rd3.campaign.running import CHECKPOINT_UNUSABLE
from rd3.duration import duration
from rd3.recipe import Recipe

SILENCE_S = 30.0
"""Longest time between two lines of a log while a recipe is running, in seconds."""
REDRAW_S = 0.5
WIDTH = 118
COLUMNS = ("there", "done", "failed", "blocked", "unfinished", "not started")
_COLUMN_OF = {name: name for name in (*COLUMNS, "running")} | {"waiting": "not started", "again": "not started"}


def named(recipe: Recipe) -> str:
    return f"{recipe.label()} {recipe.key[:8]}"


class View:
    """Writes to ``out``; ``workers`` is the number of recipes that run at a time."""

    def __init__(self, out: TextIO, workers: int, clock: Callable[[], float] = time.monotonic):
        self.out, self.workers, self._clock = out, workers, clock
        self._live = out.isatty()
        self._printed = self._drawn = clock()
        self._latest = ""

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self._printed = self._clock()
        self.out.write(f"\r{text:<{WIDTH}}\n" if self._live else f"{text}\n")
        self.out.flush()

    def progress(self, recipe: Recipe, fraction: float, note: str, status: str) -> None:
        if note.startswith(CHECKPOINT_UNUSABLE):
            self.line(f"{named(recipe)}: {note}")
        self._latest = f"{named(recipe)} {100 * fraction:.0f} %, {note}"
        self.draw(lambda: status)

    def draw(self, status: Callable[[], str]) -> None:
        """Redraw the status line if it is due."""
        if self._live and self._clock() - self._drawn >= REDRAW_S:
            self._drawn = self._clock()
            self.out.write("\r" + f"{status()} | {self._latest}"[:WIDTH].ljust(WIDTH))
            self.out.flush()
        elif not self._live and self._latest and self._clock() - self._printed >= SILENCE_S:
            self.line(f"{self._latest} | {status()}")

    def ended(self, recipe: Recipe, event: Ended, status: str) -> None:
        if event.status == "done":
            top1 = f", top-1 {event.top1_pct:.2f} %" if event.top1_pct is not None else ""
            what = f"done in {duration(event.spent_s)}{top1}"
        elif event.status == "unfinished":
            what = "unfinished; run the same command again to resume"
        else:
            what = f"{event.status}: {event.reason}"
        self.line(f"{named(recipe)}: {what} | {status}")

    def summary(self, queue: Queue) -> None:
        """Print a table with one row per kind, if there are several recipes, and the reasons of blocked recipes."""
        if len(queue.recipes) > 1:
            self.line(f"{'':<12}" + "".join(f"{name:>13}" for name in COLUMNS))
            for kind in dict.fromkeys(recipe.kind for recipe in queue.recipes.values()):
                counts = column_counts(queue, kind)
                self.line(f"{kind:<12}" + "".join(f"{counts[name]:>13}" for name in COLUMNS))
        reasons = Counter(queue.states[key].reason for key in queue.named(("blocked",)))
        for reason, count in reasons.items():
            self.line(f"blocked ({count}): {reason}")


def column_counts(queue: Queue, kind: str | None = None) -> Counter[str]:
    """Number of recipes, of one kind or of all, in each column of the table, and of running ones."""
    of_kind = (key for key, recipe in queue.recipes.items() if kind in (None, recipe.kind))
    return Counter(_COLUMN_OF.get(queue.states[key].name, "failed") for key in of_kind)
