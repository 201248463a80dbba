"""Whether there is time for a recipe."""

from __future__ import annotations

import pytest
from small_recipes import COMMON, PLAIN, a_set, teacher

from rd3.campaign.estimates import SLACK, Estimates
from rd3.campaign.running import Running
from rd3.datasets import Roots, dataset_info
from rd3.planning.cost import CPU_THREAD
from rd3.planning.forecast import work
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe, from_json, to_json
from rd3.store import Entry


def estimates(recipes, tmp_path, parents=()):
    known = {
        one.key: Entry(kind=one.kind, key=one.key, recipe=one.model_dump(mode="json"), result={}) for one in parents
    }
    return Estimates(
        {recipe.key: recipe for recipe in recipes},
        lambda _kind, key: known.get(key),
        lambda name: dataset_info(name, Roots(None, tmp_path)),
        CPU_THREAD,
    )


def an_evaluation(made, one):
    protocol = resolve_protocol("rd3-reduced", factor=1, same_network=True, set_size=10, overrides={"epochs": 3})
    return EvaluationRecipe(
        **COMMON,
        set=made.key,
        teachers=(one.key,),
        protocol=protocol,
        student="resnet18_w16",
        student_seed=0,
        normalisation=PLAIN,
    )


def test_the_estimate_is_that_of_the_costs_with_parents_from_the_list_or_the_store(tmp_path):
    one, made = teacher(), a_set()
    evaluation = an_evaluation(made, one)
    info = dataset_info("digits", Roots(None, tmp_path))
    expected = CPU_THREAD.seconds(work(evaluation, info, {one.key: one, made.key: made}.__getitem__))
    assert estimates([one, made, evaluation], tmp_path).planned(evaluation.key) == expected
    assert estimates([evaluation], tmp_path, [one, made]).planned(evaluation.key) == expected
    assert estimates([evaluation], tmp_path).planned(evaluation.key) == CPU_THREAD.start_s, "nothing is known"


def test_what_has_run_corrects_its_kind_and_stands_in_for_others(tmp_path):
    first, second, made = teacher(0, epochs=4), teacher(1, epochs=8), a_set()
    found = estimates([first, second, made], tmp_path)
    planned = {recipe.key: found.planned(recipe.key) for recipe in (first, second, made)}
    assert found.seconds(second.key) == planned[second.key]
    assert found.optimistic(second.key) == planned[second.key] / SLACK
    found.learn(first.key, 3 * planned[first.key])
    assert found.seconds(second.key) == pytest.approx(3 * planned[second.key])
    assert found.optimistic(second.key) == found.seconds(second.key)
    assert found.seconds(made.key) == pytest.approx(3 * planned[made.key])
    assert found.optimistic(made.key) == found.seconds(made.key) / SLACK


def test_the_first_that_fits_is_chosen_else_one_of_which_a_piece_fits(tmp_path):
    long, short, made = teacher(0, epochs=1000), teacher(1, epochs=1), a_set()
    found = estimates([long, short, made], tmp_path)
    found.learn(short.key, found.planned(short.key))
    found.learn(made.key, found.planned(made.key))
    enough, some = found.seconds(long.key) + 1, found.seconds(long.key) / 2
    assert found.choose([long, made], enough) is long
    assert found.choose([long, made], some) is made, "it fits, though it comes later"
    assert found.choose([long], some) is long, "epochs are kept"
    assert found.choose([made, long], 0.001) is None
    assert (found.parts(long.key), found.parts(made.key)) == (1000, 1)


def test_the_time_left_is_never_less_than_the_longest_recipe_needs(tmp_path):
    recipes = [teacher(seed) for seed in range(4)]
    found = estimates(recipes, tmp_path)
    each = found.seconds(recipes[0].key)
    keys = [recipe.key for recipe in recipes]
    assert found.left_s(keys, {}, 0.0, 1) == pytest.approx(4 * each)
    assert found.left_s(keys, {}, 0.0, 16) == pytest.approx(each)
    # One is at a fifth after 100 s: it alone needs 400 s more, whatever the plan said.
    assert found.left_s(keys[1:2], {keys[0]: Running(0.0, fraction=0.2)}, 100.0, 16) == pytest.approx(400.0)
    assert found.left_s([], {keys[0]: Running(0.0)}, 1.0, 1) == pytest.approx(each - 1.0)
    assert found.left_s([], {}, 0.0, 2) == 0.0
    # One that resumed at eight tenths has gained a tenth in 100 s: the last tenth needs as much.
    item = Running(0.0, first=(0.001, 0.8), fraction=0.9)
    assert found.left_s([], {keys[0]: item}, 100.001, 1) == pytest.approx(100.0)


def test_a_pack_keeps_one_worker_to_its_end(tmp_path):
    recipes = [teacher(seed) for seed in range(4)]
    found = estimates(recipes, tmp_path)
    half = {
        recipe.key: Running(0.0, pack=4, fraction=0.5) for recipe in recipes
    }  # after 100 s four together are halfway
    assert [found.left_s([], half, 100.0, workers) for workers in (1, 2, 8)] == pytest.approx([100.0] * 3)


def test_a_recipe_that_nobody_can_estimate_is_no_obstacle(tmp_path):
    foreign = from_json(to_json(a_set()).replace('"digits"', '"nowhere"'))
    found = estimates([foreign], tmp_path)
    assert found.planned(foreign.key) == CPU_THREAD.start_s
    assert found.choose([foreign], 60.0) is foreign


@pytest.mark.parametrize(("method", "settings"), [("rded", {"unheard_of": 1}), ("sre2l", {"iterations": 9})])
def test_settings_of_another_version_are_no_obstacle(method, settings, tmp_path):
    """The recipe reports why when it runs, and the others run."""
    made = a_set().model_copy(update={"method": method, "settings": settings, "teachers": (teacher().key,)})
    found = estimates([made, teacher()], tmp_path)
    assert found.planned(made.key) == CPU_THREAD.start_s
    assert found.choose([made], 60.0) is made and found.parts(made.key) >= 1
