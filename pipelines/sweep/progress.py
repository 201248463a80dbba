"""Progress of trials: one bar per study on a terminal, one line per batch in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from pipelines.terminal import PlainColumn, PlainConsole, printable
from rd3.duration import duration

if TYPE_CHECKING:
    from pipelines.sweep.study import Tuning


class TrialView:
    """Progress of one study; earlier trials do not count for the remaining time."""

    def __init__(self, label: str, tuning: Tuning, out: TextIO, bar: Progress | None):
        self.label, self.tuning, self.out, self.bar = label, tuning, out, bar
        self.total = tuning.sweep.trials
        self.before = self.done = len(tuning.trials())
        self.began = time.monotonic()
        if bar is not None:
            self.task = bar.add_task(label, total=self.total, completed=self.done, note=self.note())

    def note(self) -> str:
        """``best 81.30 % (trial 7), 5 pruned, 3 min 20 s left``."""
        pruned = sum(trial.state.name == "PRUNED" for trial in self.tuning.trials())
        best = self.tuning.best()
        parts = [f"best {best.value:.2f} % (trial {best.number})"] if best is not None else []
        parts += [f"{pruned} pruned"]
        if self.before < self.done < self.total:
            each = (time.monotonic() - self.began) / (self.done - self.before)
            parts.append(f"{duration(each * (self.total - self.done))} left")
        return ", ".join(parts)

    def one_more(self) -> None:
        """Count a trial that has ended, before its batch has."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        line = printable(f"{self.label}: {text}")
        if self.bar is not None:
            self.bar.console.print(line, soft_wrap=True)
            return
        self.out.write(line + "\n")
        self.out.flush()

    def batch_ended(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, note=self.note())
            return
        took = duration(time.monotonic() - self.began)
        self.say(f"{self.done}/{self.total} trials, {self.note()} | {took}")


@contextlib.contextmanager
def open_trial_view(label: str, tuning: Tuning, out: TextIO) -> Iterator[TrialView]:
    console = PlainConsole(file=out)
    if not console.is_terminal:
        yield TrialView(label, tuning, out, None)
        return
    columns = (
        PlainColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        PlainColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield TrialView(label, tuning, out, bar)
