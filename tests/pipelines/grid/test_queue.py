"""The order in which a graph is worked off, checked against a plain simulation."""

from __future__ import annotations

import random

import pytest
from small_recipes import Stub

from pipelines.grid.queue import Demand, RecipeQueue, Unsuccessful

ONE = {kind: Demand(1.0) for kind in ("teacher", "set", "evaluation")}
EXCLUSIVE = {**ONE, "set": Demand(2.0, whole=True)}


def graph(sets: int = 3, evaluations: int = 2) -> dict[str, Stub]:
    """One teacher, ``sets`` sets from it, ``evaluations`` of each."""
    recipes = {"t": Stub("teacher", "t")}
    for s in range(sets):
        recipes[f"s{s}"] = Stub("set", f"s{s}", ("teacher", "t"))
    for s in range(sets):
        for e in range(evaluations):
            recipes[f"e{s}{e}"] = Stub("evaluation", f"e{s}{e}", ("set", f"s{s}"), ("teacher", "t"))
    return recipes


def test_parents_first_and_an_evaluation_before_the_next_set():
    queue = RecipeQueue(graph(), demands=ONE)
    assert queue.take(2).key == "t"
    assert queue.take(2) is None
    queue.finish("t")
    assert [queue.take(2).key, queue.take(2).key] == ["s0", "s1"]
    assert queue.take(2) is None
    queue.finish("s1")
    assert queue.take(2).key == "e10"
    queue.finish("e10")
    assert queue.take(2).key == "e11"


@pytest.mark.parametrize("demands", [ONE, EXCLUSIVE])
def test_every_order_of_completion_works_off_the_whole_graph(demands):
    for seed in range(30):
        draw = random.Random(seed)
        recipes = graph(sets=4, evaluations=3)
        queue = RecipeQueue(recipes, demands=demands)
        running, done = [], []
        while not queue.finished:
            while (recipe := queue.take(2)) is not None:
                assert all(parent in done for _kind, parent in recipe.parents())
                running.append(recipe.key)
            assert sum(demands[recipes[key].kind].cpus for key in running) <= 2
            key = running.pop(draw.randrange(len(running)))
            queue.finish(key)
            done.append(key)
        assert sorted(done) == sorted(recipes)
        assert len(set(done)) == len(done)


def test_an_exclusive_recipe_neither_starves_nor_shares():
    recipes = graph(sets=2, evaluations=5)
    queue = RecipeQueue(recipes, reused=["t", "s0"], demands=EXCLUSIVE)
    assert queue.take(2).key == "s1"  # before the ready evaluations of s0
    assert queue.take(2) is None
    queue.finish("s1")
    assert queue.take(2).kind == queue.take(2).kind == "evaluation"
    queue.again("s1")  # gone: it must be made again, and waits for both
    assert queue.take(2) is None
    for key in list(queue.running):
        queue.finish(key)
    assert queue.take(2).key == "s1"


def test_what_is_reused_is_not_run_and_a_failure_closes_its_children():
    queue = RecipeQueue(graph(sets=2, evaluations=1), reused=["t"], demands=ONE)
    queue.take(2), queue.take(2)
    queue.close("s0", "diverged", "loss is NaN at iteration 7")
    queue.finish("s1")
    assert queue.unsuccessful["e00"].status == "blocked"
    assert "diverged: loss is NaN at iteration 7" in queue.unsuccessful["e00"].reason
    assert queue.take(2).key == "e10"
    queue.finish("e10")
    assert queue.finished
    assert queue.counts() == {
        "teacher": {"done": 0, "reused": 1, "running": 0, "failed": 0, "waiting": 0},
        "set": {"done": 1, "reused": 0, "running": 0, "failed": 1, "waiting": 0},
        "evaluation": {"done": 1, "reused": 0, "running": 0, "failed": 1, "waiting": 0},
    }


def test_closed_beforehand_blocks_what_is_made_from_it():
    unsuccessful = {"t": Unsuccessful("blocked", "import it: rd3 teacher import")}
    queue = RecipeQueue(graph(), unsuccessful=unsuccessful, demands=ONE)
    assert queue.finished
    assert {how.reason for how in queue.unsuccessful.values()} == {"import it: rd3 teacher import"}
    once = RecipeQueue(graph(), unsuccessful=unsuccessful, demands=ONE, costs_s=dict.fromkeys(graph(), 1.0))
    each = RecipeQueue(graph(), unsuccessful=queue.unsuccessful, demands=ONE, costs_s=dict.fromkeys(graph(), 1.0))
    assert each.long_s(1) == once.long_s(1) >= 0, "a recipe without a result is left out of the rest once"


def test_a_recipe_that_comes_back_goes_out_once_more():
    queue = RecipeQueue(graph(sets=1, evaluations=1), reused=["t", "s0"], demands=ONE)
    assert queue.take(2).key == "e00"
    queue.again("s0")
    queue.again("e00")
    assert queue.take(2).key == "s0"
    assert queue.take(2) is None
    queue.finish("s0")
    assert queue.take(2).key == "e00"
    assert queue.take(2) is None


def test_a_recipe_that_comes_back_after_its_parent_has_failed_is_blocked():
    """Its set was found damaged, and generating it again failed, while it ran."""
    queue = RecipeQueue(graph(sets=1, evaluations=1), demands=ONE)
    for key in ("t", "s0"):
        assert queue.take(2).key == key
        queue.finish(key)
    assert queue.take(2).key == "e00"
    queue.again("s0")
    assert queue.take(2).key == "s0"
    queue.close("s0", "failed", "no space")
    queue.again("e00")
    assert queue.finished
    assert queue.unsuccessful["e00"].status == "blocked"
    assert "ended as failed: no space" in queue.unsuccessful["e00"].reason


def test_a_recipe_larger_than_the_cluster_is_still_handed_out_when_nothing_runs():
    queue = RecipeQueue({"s": Stub("set", "s")}, demands={"set": Demand(8.0, gpus=1.0, whole=True)})
    assert queue.take(0).key == "s"


def test_ten_thousand_recipes_are_worked_off_quickly():
    recipes = graph(sets=1000, evaluations=9)
    queue = RecipeQueue(recipes, demands=ONE)
    count = 0
    while (recipe := queue.take(1)) is not None:
        queue.finish(recipe.key)
        count += 1
    assert count == len(recipes) == 10_001
    assert queue.finished


def test_a_pack_uses_what_one_of_it_takes_until_its_last_recipe_has_ended():
    queue = RecipeQueue(graph(sets=1, evaluations=4), reused=["t", "s0"], demands=ONE)
    assert queue.take(1).key == "e00"
    queue.join("e00", ["e02", "e03"])
    assert queue.running == {"e00", "e02", "e03"} and queue.ready == {"e01"}
    queue.finish("e02")
    queue.close("e00", "diverged", "loss is NaN")
    assert queue.take(1) is None
    queue.again("e03")
    assert queue.ready == {"e01", "e03"}
    assert [queue.take(1).key, queue.take(1)] == ["e01", None]
    queue.finish("e01")
    assert queue.take(1).key == "e03"
    queue.finish("e03")
    assert queue.finished


@pytest.mark.parametrize(
    ("demand", "cpus", "gpus", "trials"),
    [
        (Demand(1.0), 8.0, 0.0, 8),
        (Demand(1.0, 0.25), 16.0, 2.0, 8),
        (Demand(1.0, 0.1), 16.0, 1.0, 10),
        (Demand(1.0, 0.25), 3.0, 2.0, 3),
        (Demand(8.0), 2.0, 0.0, 1),
    ],
)
def test_how_many_trials_run_at_a_time(demand: Demand, cpus: float, gpus: float, trials: int):
    assert demand.at_a_time(cpus, gpus) == trials
