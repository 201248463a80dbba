"""The live view, the lines of a log, and the time that is left."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_recipes import Stub

from pipelines.engine.eta import Eta, eta_of, own_left_s
from pipelines.engine.progress import LineView, LiveView, View, open_view
from pipelines.grid.queue import Demand, RecipeQueue
from rd3.campaign.running import Running
from rd3.duration import duration
from rd3.teacher.checkpoint import read_checkpoint


def queue_of(*keys: str) -> RecipeQueue:
    recipes = {key: Stub("set" if key.startswith("s") else "evaluation", key) for key in keys}
    return RecipeQueue(recipes, demands={"set": Demand(1.0), "evaluation": Demand(1.0)})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3599.6, "1 h 00 min")]
)
def test_spans(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen is believed at once, which makes for round numbers."""
    monkeypatch.setattr("pipelines.engine.eta.PRIOR_S", 1e-9)


@pytest.mark.usefixtures("sure")
def test_time_left_is_planned_cost_scaled_by_what_finished_took():
    queue = queue_of("s0", "s1", "e0", "e1")
    eta = Eta({"s0": 10.0, "s1": 10.0, "e0": 4.0, "e1": 4.0}, parallel=2)
    assert eta.left_s(queue, {}, 0.0) == pytest.approx(28 / 2)
    queue.take(9), queue.take(9), queue.take(9)
    queue.finish("e0")
    eta.finished("e0", "evaluation", Running(0.0), 8.0)  # twice as long as planned; so is all that nothing is known of
    assert eta.left_s(queue, {}, 8.0) == pytest.approx((20.0 + 20.0 + 8.0) / 2)
    queue.finish("s0")
    eta.finished("s0", "set", Running(0.0), 30.0)  # three times
    assert eta.left_s(queue, {}, 30.0) == pytest.approx(max(30.0, (30.0 + 8.0) / 2))
    queue.finish("s1"), queue.finish("e1")
    assert eta.left_s(queue, {}, 30.0) == 0


def moving(since: float, *reports: tuple[float, float]) -> Running:
    """A running recipe with reports of (time, fraction)."""
    item = Running(since)
    for now, fraction in reports:
        item.report(now, fraction, "")
    return item


@pytest.mark.usefixtures("sure")
def test_never_less_than_what_a_running_recipe_still_needs():
    """A plan of 3 minutes for the grid, of which one recipe is through a seventh part after 170 s: 17 more minutes."""
    queue = queue_of("e0", "e1", "e2")
    eta = Eta({"e0": 90.0, "e1": 45.0, "e2": 45.0}, parallel=2)
    queue.take(9)
    slow = moving(0.0, (3.0, 0.0), (173.0, 1 / 7))
    assert own_left_s(slow, 173.0) == pytest.approx(6 * 170)
    left = eta.left_s(queue, {"e0": slow}, 173.0)
    assert left >= 6 * 170
    # The others are likely as slow: 170 s for a seventh of 90 planned ones is 13 times as long.
    assert left == pytest.approx(max(6 * 170, (6 * 170 + 90 * 170 * 7 / 90) / 2))


def test_time_goes_by_between_two_reports():
    item = moving(0.0, (10.0, 0.2), (20.0, 0.4))
    assert [own_left_s(item, now) for now in (20.0, 25.0, 60.0)] == pytest.approx([30.0, 25.0, 0.0])
    assert own_left_s(moving(0.0, (10.0, 0.2)), 20.0) is None, "one report says nothing of the pace"
    assert own_left_s(moving(0.0, (10.0, 0.2), (20.0, 0.2)), 20.0) is None


def test_before_it_moves_a_recipe_has_its_planned_time_less_what_has_gone_by():
    queue = queue_of("s0")
    eta = Eta({"s0": 100.0})
    queue.take(1)
    assert eta.left_s(queue, {"s0": Running(0.0)}, 30.0) == pytest.approx(70.0)
    assert eta.left_s(queue, {"s0": Running(0.0)}, 400.0) == pytest.approx(40.0), "late already: never nothing"
    assert eta.left_s(queue, {"s0": moving(0.0, (20.0, 0.4))}, 30.0) == pytest.approx(60.0 - 10.0)


@pytest.mark.usefixtures("sure")
def test_kinds_and_networks_learn_for_themselves():
    queue = queue_of("e0", "e1", "e2", "s0")
    eta = Eta(dict.fromkeys(queue.recipes, 10.0), networks={"e0": "a", "e1": "b", "e2": "a", "s0": "b"})
    for key, spent_s in (("e0", 40.0), ("e1", 10.0)):
        queue.take(9)
        queue.finish(key)
        eta.finished(key, "evaluation", Running(0.0), spent_s)
    assert eta.left_s(queue, {}, 0.0) == pytest.approx(10 * 4.0 + 10 * 2.5), "of e2's network; of all, for the set"
    queue.close("s0", "failed", "no")
    assert eta.left_s(queue, {}, 0.0) == pytest.approx(40.0)


def test_what_an_earlier_attempt_has_done_is_not_learnt_from():
    queue = queue_of("e0", "e1")
    eta = Eta({"e0": 100.0, "e1": 100.0})
    queue.take(9)
    resumed = moving(0.0, (2.0, 0.9), (7.0, 0.95))
    queue.finish("e0")
    eta.finished("e0", "evaluation", resumed, 12.0)  # a tenth of it in 10 s: as planned
    assert eta.left_s(queue, {}, 12.0) == pytest.approx(100.0)


def test_the_longest_chain_counts_whatever_waits():
    recipes = {
        "s": Stub("set", "s"),
        "e": Stub("evaluation", "e", ("set", "s")),
        "other": Stub("evaluation", "other"),
    }
    queue = RecipeQueue(recipes, demands={"set": Demand(1.0), "evaluation": Demand(1.0)})
    assert Eta({"s": 5.0, "e": 7.0, "other": 6.0}, parallel=64).left_s(queue, {}, 0.0) == 12.0


@pytest.mark.parametrize(
    ("devices", "most", "left"),
    [((2.0, 0.0), None, 80.0), ((2.0, 0.0), 16, 80.0), ((8.0, 0.0), 2, 80.0), ((8.0, 1.0), 4, 160.0)],
)
def test_more_trials_than_devices_are_not_faster(devices, most, left):
    recipes = {f"e{n}": Stub("evaluation", f"e{n}") for n in range(16)}
    queue = RecipeQueue(recipes, demands={"evaluation": Demand(1.0, 0.25)}, costs_s=dict.fromkeys(recipes, 10.0))
    workers = SimpleNamespace(devices=lambda: devices)
    assert eta_of(SimpleNamespace(recipes={}), queue, workers, most).left_s(queue, {}, 0.0) == left


def test_a_running_evaluation_that_may_read_cached_logits_teaches_nothing():
    queue = queue_of("e0", "e1")
    eta = Eta({"e0": 100.0, "e1": 100.0})
    queue.take(1)
    asks, reads = (replace(moving(0.0, (10.0, 0.1), (20.0, 0.9)), logits_read=read) for read in (False, True))
    own_s = (1 - 0.9) * 10.0 / 0.8
    assert eta.left_s(queue, {"e0": reads}, 20.0) == pytest.approx(own_s + 100.0)
    assert eta.left_s(queue, {"e0": asks}, 20.0) < own_s + 100.0


def test_a_short_recipe_in_a_cold_worker_teaches_little_of_long_ones():
    queue = queue_of("s0", "s1", "s2")
    eta = Eta({"s0": 0.5, "s1": 1000.0, "s2": 1000.0})
    queue.take(9)
    queue.finish("s0")
    eta.finished("s0", "set", Running(0.0), 15.0)  # thirty times as planned
    assert 2000 < eta.left_s(queue, {}, 15.0) < 2 * 2000
    queue.take(9)
    queue.finish("s1")
    eta.finished("s1", "set", Running(15.0), 5015.0)
    assert eta.left_s(queue, {}, 5015.0) == pytest.approx(5000.0, rel=0.1), "a long one is believed"


@pytest.mark.usefixtures("sure")
def test_what_shares_a_device_is_planned_whole_and_counted_by_what_it_takes_once_seen():
    recipes = {f"e{n}": Stub("evaluation", f"e{n}") for n in range(8)}
    queue = RecipeQueue(recipes, demands={"evaluation": Demand(1.0, 0.25)})
    eta = Eta(dict.fromkeys(recipes, 10.0), parallel=1, takes=lambda demand: demand.gpus)
    assert eta.left_s(queue, {}, 0.0) == 80.0
    for _four in range(4):
        queue.take(9, 1)
    for key in list(queue.running):
        queue.finish(key)
        eta.finished(key, "evaluation", Running(0.0), 20.0)  # four together at half their speed
    assert eta.left_s(queue, {}, 20.0) == pytest.approx(20.0)


@pytest.mark.usefixtures("sure")
def test_a_pack_takes_the_time_of_all_its_recipes_and_one_device():
    queue = queue_of("e0", "e1", "e2")
    eta = Eta(dict.fromkeys(queue.recipes, 10.0))
    queue.take(1)
    queue.join("e0", ["e1"])
    pack = {key: Running(0.0, pack=2) for key in ("e0", "e1")}
    assert eta.left_s(queue, pack, 0.0) == pytest.approx(30.0)
    assert eta.left_s(queue, pack, 5.0) == pytest.approx(25.0)
    for item in pack.values():
        item.report(10.0, 0.5, "")
        item.report(11.0, 0.6, "")
    assert eta.left_s(queue, pack, 11.0) == pytest.approx(4.0 + 10.0), "what a pack shows of its pace is not learnt"


def test_lines_for_what_ends():
    out = io.StringIO()
    queue = queue_of("s0", "s1")
    view = open_view("demo", queue, Eta({}), {}, out)
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
    monkeypatch.setattr("pipelines.engine.progress.time.monotonic", lambda: float(next(clock)))
    out, queue = io.StringIO(), queue_of("s0")
    view = open_view("demo", queue, Eta({}), {}, out)
    queue.take(1)
    view.started("s0")
    for step in range(12):
        view.moved("s0", step / 12, f"step {step}")
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 7, "neither silence nor a line a step"
    assert lines[0].startswith("set s0 s0: ") and " %, step " in lines[0] and "| sets 0/1" in lines[0]


def test_a_training_that_restarts_is_a_line_or_a_problem(tmp_path):
    """The note is the one of the training itself."""
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut")
    out, queue = io.StringIO(), queue_of("s0")
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    lines, live = open_view("demo", queue, Eta({}), {}, out), LiveView("demo", queue, Eta({}), {}, console)
    for view in (lines, live):
        view.started("s0")
        read_checkpoint(tmp_path / "checkpoint.safetensors", partial(view.moved, "s0"))
        view.moved("s0", 0.1, "epoch 1 of 10")
    assert out.getvalue().startswith("set s0 s0: 0 %, restarting: checkpoint.safetensors cannot be read")
    assert out.getvalue().count("\n") == 1
    with console.capture() as capture:
        console.print(live.draw())
    assert "set s0 s0: restarting: checkpoint.safetensors cannot be read" in capture.get()


def test_the_live_view_shows_counts_running_recipes_and_problems():
    queue = queue_of("s0", "s1", "e0")
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    view = LiveView("demo", queue, Eta({"s0": 5.0, "s1": 5.0, "e0": 5.0}), {"e0": "E0", "s1": "S1"}, console)
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


def test_the_driver_may_go_on_while_a_live_view_computes_the_time_left():
    class Meanwhile(Eta):
        def left_s(self, queue, running, now):
            view.started("s1")
            assert set(running) == {"s0"}
            return super().left_s(queue, running, now)

    view = View("demo", queue_of("s0", "s1"), Meanwhile({"s0": 5.0, "s1": 5.0}), {})
    view.queue.take(1)
    view.started("s0")
    assert view.left() != "unknown" and set(view.running) == {"s0", "s1"}


def test_no_view_when_none_is_wanted():
    out = io.StringIO()
    view = open_view("demo", queue_of("s0"), Eta({}), {}, out, wanted=False)
    with view:
        view.started("s0")
        view.ended("s0", "done")
    assert type(view) is View
    assert out.getvalue() == ""
