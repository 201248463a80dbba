"""Differences on the same seeds, against numbers worked out by scipy and by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from tests.tracking.report.test_tables import Results
from tracking.report.pairs import evaluation_texts, interval_text, pairs
from tracking.report.query import rows


def of(results: Results):
    return pairs(rows(results.cells, results.find))


def test_one_set_is_compared_over_student_seeds():
    results = Results()
    results.add("dwa", 10, [40.0, 41.0, 42.5])
    results.add("dwa", 10, [39.0, 41.5, None, 50.0], overrides={"dwa.steps": 0})
    [pair] = of(results)
    assert (pair.changed, pair.seeds, pair.unit) == ({"steps": 0}, 2, "student seeds")
    assert (pair.plain, pair.variant) == (40.5, 40.25)
    expected = stats.ttest_rel([39.0, 41.5], [40.0, 41.0])
    assert pair.difference.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (pair.difference.low, pair.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert interval_text(pair) == f"−0.2 [−{-low:.1f}, {high:.1f}], p 0.8 (2 student seeds)"


def test_several_sets_count_one_each():
    results = Results()
    for seed, (plain, changed) in enumerate([((10.0, 12.0), (13.0, 15.0)), ((11.0, 11.0), (12.0, 12.0))]):
        results.add("cda", 1, plain, set_seed=seed)
        results.add("cda", 1, changed, set_seed=seed, overrides={"cda.curriculum": "none"})
    [pair] = of(results)
    assert (pair.seeds, pair.unit, pair.difference.n) == (4, "set seeds", 2)
    assert pair.difference.mean == pytest.approx(2.0)  # the mean of 3 and 1


def test_the_same_difference_on_every_seed_is_chance_and_not_certain():
    results = Results()
    results.add("edc", 1, [40.1, 41.2])
    results.add("edc", 1, [40.4, 41.5], overrides={"edc.init": "noise"})
    results.add("dwa", 1, [40.1, 41.2])
    results.add("dwa", 1, [40.1, 41.2], overrides={"dwa.steps": 0})
    changed, same = of(results)
    assert changed.difference is None
    assert interval_text(changed) == "+0.3 (the same for all student seeds, no interval)"
    assert interval_text(same) == "+0.0 [0.0, 0.0], p 1 (2 student seeds)"


def test_a_single_pair_has_no_interval():
    results = Results()
    results.add("edc", 1, [30.0])
    results.add("edc", 1, [28.5], overrides={"edc.init": "noise"})
    [pair] = of(results)
    assert pair.difference is None
    assert interval_text(pair) == "−1.5 (1 pair, no interval)"


def test_pairs_across_precisions_are_marked():
    results = Results()
    results.add("edc", 1, [30.0], ran="bf16")
    results.add("edc", 1, [28.5], overrides={"edc.init": "noise"}, ran="fp32")
    results.add("dwa", 10, [40.0, 41.0], ran="fp32")
    results.add("dwa", 10, [39.0, 41.5], overrides={"dwa.steps": 0}, ran=("fp32", "bf16"))
    results.add("cda", 10, [40.0, 41.0], ran="fp32")
    results.add("cda", 10, [39.0, 41.5], overrides={"cda.curriculum": "none"}, ran="fp32")
    texts = {pair.method: interval_text(pair) for pair in of(results)}
    assert texts["edc"] == "−1.5 (1 pair, no interval; across bf16 and fp32)"
    assert texts["dwa"].endswith("(2 student seeds; across bf16 and fp32)")
    assert texts["cda"].endswith("(2 student seeds)")


@pytest.mark.parametrize(
    "other",
    [{"ipc": 10}, {"labels": "hard"}, {"overrides": {"dwa.steps": 0, "temperature": 4.0}}, {"dataset": "digits"}],
)
def test_only_what_is_equal_otherwise_is_a_pair(other):
    results = Results()
    results.add("dwa", 1, [40.0, 41.0])
    fields = {"ipc": 1, "overrides": {"dwa.steps": 0}} | other
    results.add("dwa", fields.pop("ipc"), [39.0, 41.5], **fields)
    assert of(results) == []


def test_a_variant_without_its_method_and_what_is_not_done_are_no_pairs():
    results = Results()
    results.add("dwa", 1, [40.0], overrides={"dwa.steps": 0})
    results.add("sre2l", 1, [None])
    results.add("sre2l", 1, [20.0], overrides={"sre2l.init": "rded"})
    results.add("random", 1, [20.0], overrides={"temperature": 4.0})
    assert of(results) == []


def test_pairs_are_told_apart_by_what_their_evaluations_do_not_share():
    results = Results()
    for student in ("resnet18", "convnet"):
        for epochs in (10, 20):
            same = {"student": student, "overrides": {"epochs": epochs}}
            results.add("rded", 1, [50.0, 51.0], **same)
            results.add("rded", 1, [49.0, 49.5], **same | {"overrides": {"epochs": epochs, "rded.factor": 2}})
    found = of(results)
    assert evaluation_texts(found) == [
        f"student={student}, epochs={epochs}" for student in ("resnet18", "convnet") for epochs in (10, 20)
    ]
    assert evaluation_texts(found[:1]) == [""] and evaluation_texts([]) == []
