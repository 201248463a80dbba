"""The live view, the lines of a log, and the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines.progress import Eta, LineView, LiveView, Running, View, open_view, span
from pipelines.queue import Demand, RecipeQueue


class Stub:
    """A recipe as the queue sees it."""

    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key

    def parents(self):
        return ()

    def label(self) -> str:
        return f"{self.kind} {self.key}"


def queue_of(*keys: str) -> RecipeQueue:
    recipes = {key: Stub("set" if key.startswith("s") else "evaluation", key) for key in keys}
    return RecipeQueue(recipes, demands={"set": Demand(1.0), "evaluation": Demand(1.0)})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3599.6, "1 h 00 min")]
)
def test_spans(seconds: float, text: str):
    assert span(seconds) == text


def test_time_left_is_planned_cost_scaled_by_what_finished_took():
    queue = queue_of("s0", "s1", "e0", "e1")
    eta = Eta({"s0": 10.0, "s1": 10.0, "e0": 4.0, "e1": 4.0}, parallel=2)
    assert eta.left_s(queue, {}) == pytest.approx(28 / 2)
    queue.take(9), queue.take(9), queue.take(9)
    queue.finish("e0")
    eta.finished("e0", "evaluation", 8.0)  # twice as long as planned; sets are scaled by all that is known
    queue.finish("s0")
    eta.finished("s0", "set", 30.0)  # three times
    assert eta.left_s(queue, {}) == pytest.approx(max(30.0, (30.0 + 8.0) / 2))
    assert eta.left_s(queue, {"e1": Running(0.0, fraction=0.75)}) == pytest.approx(max(30.0, (30.0 + 2.0) / 2))
    queue.finish("s1"), queue.finish("e1")
    assert eta.left_s(queue, {}) == 0


def test_lines_for_what_ends():
    out = io.StringIO()
    queue = queue_of("s0", "s1")
    view = open_view("demo", queue, Eta({}), out=out)
    assert isinstance(view, LineView)
    for status, key in (("done", "s0"), ("diverged", "s1")):
        queue.take(2)
        view.started(key)
        queue.finish(key) if status == "done" else queue.close(key, status, "The loss is nan.")
        view.ended(key, status, "" if status == "done" else "The loss is nan.")
    first, second = out.getvalue().splitlines()
    assert first.startswith("set s0 s0: done in 0 s | sets 1/2, 0 s")
    assert second.startswith("set s1 s1: diverged in 0 s: The loss is nan. | sets 1/2 (1 failed)")


def test_a_line_now_and_then_for_what_moves(monkeypatch):
    clock = iter(range(0, 1000, 10))  # every look at the clock is ten seconds later
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: float(next(clock)))
    out, queue = io.StringIO(), queue_of("s0")
    view = open_view("demo", queue, Eta({}), out=out)
    queue.take(1)
    view.started("s0")
    for step in range(12):
        view.moved("s0", step / 12, f"step {step}")
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 5, "neither silence nor a line a step"
    assert lines[0].startswith("set s0 s0: ") and " %, step " in lines[0] and "| sets 0/1" in lines[0]


def test_the_live_view_shows_counts_running_recipes_and_problems():
    queue = queue_of("s0", "s1", "e0")
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    view = LiveView("demo", queue, Eta({"s0": 5.0, "s1": 5.0, "e0": 5.0}), str.upper, console)
    queue.take(1)
    view.started("e0")
    view.moved("e0", 0.42, "epoch 3 of 7")
    queue.close("s1", "oom", "CUDA out of memory")
    view.ended("s1", "oom", "CUDA out of memory")
    with console.capture() as capture:
        console.print(view.draw())
    text = capture.get()
    assert "E0" in text and "42 %" in text and "epoch 3 of 7" in text
    assert "S1" in text and "CUDA out of memory" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["done", "reused", "running", "failed", "waiting"] in rows
    assert ["sets", "0", "0", "0", "1", "1"] in rows
    assert ["evaluations", "0", "0", "1", "0", "0"] in rows


def test_no_view_when_none_is_wanted():
    out = io.StringIO()
    view = open_view("demo", queue_of("s0"), Eta({}), wanted=False, out=out)
    with view:
        view.started("s0")
        view.ended("s0", "done")
    assert type(view) is View
    assert out.getvalue() == ""
