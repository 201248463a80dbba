"""The made-up clock against schedules that can be worked out by hand, and the order against what no order can beat."""

from __future__ import annotations

import random

import pytest
from small_recipes import Stub

from pipelines.grid.queue import Demand, RecipeQueue, least_wall_s, simulated_wall_s

ONE = dict.fromkeys(("teacher", "set", "evaluation"), Demand(1.0))


def queue_of(
    seconds: dict[str, float], after: dict[str, str], known_costs: bool = True, **options: object
) -> RecipeQueue:
    """``s...`` are sets, ``e...`` evaluations; ``after`` names a parent."""
    kinds = {"t": "teacher", "s": "set", "e": "evaluation"}
    recipes = {
        key: Stub(kinds[key[0]], key, *([(kinds[after[key][0]], after[key])] if key in after else ()))
        for key in seconds
    }
    return RecipeQueue(recipes, demands=ONE, costs_s=seconds if known_costs else None, **options)


def test_one_device_takes_all_and_many_take_the_longest_chain():
    seconds = {"t": 2.0, "s0": 3.0, "s1": 1.0, "e0": 4.0, "e1": 5.0}
    after = {"s0": "t", "s1": "t", "e0": "s0", "e1": "s1"}
    assert simulated_wall_s(queue_of(seconds, after), seconds, 1) == 15
    assert simulated_wall_s(queue_of(seconds, after), seconds, 9) == 9 == queue_of(seconds, after).path_s["t"]
    assert least_wall_s(queue_of(seconds, after), 1) == 15 and least_wall_s(queue_of(seconds, after), 9) == 9


def test_a_long_path_is_not_left_over_at_the_end():
    seconds = {f"s{n}": 1.0 for n in range(20)} | {"s_long": 10.0, "e_long": 5.0}
    after = {"e_long": "s_long"}
    assert simulated_wall_s(queue_of(seconds, after, known_costs=False), seconds, 2) > 20
    assert simulated_wall_s(queue_of(seconds, after), seconds, 2) == 17.5 + 0.5


def test_what_is_short_beside_all_that_is_left_waits_its_turn():
    seconds = {f"s{n}": 2.0 for n in range(40)} | {f"e{n}": 1.0 for n in range(40)}
    queue = queue_of(seconds, {f"e{n}": f"s{n}" for n in range(40)})
    assert [queue.take(2).key, queue.take(2).key] == ["s0", "s1"]
    queue.finish("s0")
    assert queue.take(2).key == "e0", "a result before the next set"


def test_what_is_settled_meanwhile_counts_no_longer():
    seconds = {"s0": 1.0, "s1": 2.0} | {f"s{n}": 1.5 for n in range(2, 22)}
    queue = queue_of(seconds, {})
    assert queue.take(1).key == "s0", "in the order of the grid, while much is left"
    queue.finish("s0")
    for n in range(2, 21):
        queue.close(f"s{n}", "failed", "no")
    assert queue.take(1).key == "s1", "the longest of what is left"
    queue.finish("s1")
    queue.again("s0")
    queue.again("s1")
    assert queue.take(1).key == "s1"


@pytest.mark.parametrize("devices", [1, 3, 8, 64])
def test_close_to_what_no_order_can_beat(devices: int):
    for seed in range(20):
        draw = random.Random(seed)
        seconds, after = {"t": draw.uniform(0, 5)}, {}
        for s in range(30):
            seconds[f"s{s}"], after[f"s{s}"] = draw.lognormvariate(0, 1.5), "t"
            for e in range(draw.randrange(6)):
                seconds[f"e{s}_{e}"], after[f"e{s}_{e}"] = draw.lognormvariate(0, 1.5), f"s{s}"
        least = least_wall_s(queue_of(seconds, after), devices)
        taken = simulated_wall_s(queue_of(seconds, after), seconds, devices)
        assert least <= taken + 1e-9
        # Graham's bound holds for any order; the one taken is far better.
        assert taken <= 1.25 * least
