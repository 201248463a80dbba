"""A trial in a worker: what it trains, what it takes from earlier scores, how it ends."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines.sweep.study import Pruning
from pipelines.sweep.worker import Score, TrialInput, evaluate_point, scratch_folder
from rd3 import perform
from rd3.errors import DataCorrupt, Diverged, Unavailable
from rd3.evaluation.sharing import LogitsCache
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation
from rd3.values import canonical
from tracking.place import Place

PLAIN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def recipe(seed: int) -> EvaluationRecipe:
    return EvaluationRecipe(
        set="s" * 64,
        protocol=resolve_protocol(
            "rd3",
            factor=1,
            same_network=True,
            set_size=4,
            overrides={"epochs": 12, "test_epochs": [4, 8]},
        ),
        student="resnet18_w16",
        student_seed=seed,
        data=Data(name="digits", fingerprint="f", split="fit"),
        tested_on="validation",
        classes="c",
        resolution=32,
        normalisation=PLAIN,
    )


FIRST, SECOND = recipe(0), recipe(1)


@pytest.fixture
def trained(monkeypatch):
    """Stands for the training: accuracies by student seed; ``keys`` is what was trained."""
    world = SimpleNamespace(scores={0: (20.0, 40.0, 60.0), 1: (10.0, 30.0, 70.0)}, keys=[], error=None)
    world.asked, world.away, world.cached_logits = [], 0, []

    def perform(one, store, roots, out, *, device, tested, cached_logits):
        world.keys.append(one.key)
        world.cached_logits.append(cached_logits)
        assert out.is_dir() and out.parent == scratch_folder(roots.home, "sweep-k")
        *looks, last = world.scores[one.student_seed]
        for epoch, look in zip(one.protocol.test_epochs, looks, strict=True):
            tested(epoch, look)
        if world.error is not None:
            raise world.error
        return SimpleNamespace(result={"top1_pct": last, "tested": 140, "ran_precision": "fp32"})

    def fetch(_store, kind, key):
        world.asked.append((kind, key))
        if world.away:
            world.away -= 1
            raise Unavailable("The store does not respond.")

    monkeypatch.setattr("rd3.perform.perform", perform)
    monkeypatch.setattr("pipelines.sweep.worker.GivenStore.fetch", fetch)
    monkeypatch.setattr("tracking.ledger.retry.time.sleep", lambda _s: None)
    return world


@pytest.fixture
def attempt(tmp_path) -> TrialInput:
    return TrialInput(
        sweep="sweep-k",
        study="study",
        number=0,
        evaluations=[canonical(one.model_dump(mode="json")) for one in (FIRST, SECOND)],
        pruning=Pruning("none", 4, 12),
        place=Place("sqlite://", str(tmp_path / "artifacts"), tmp_path),
        given=[],
    )


class Ends:
    """A pruner that ends a trial at an epoch."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def prune(self, study, trial) -> bool:
        return trial.last_step >= self.epoch


@pytest.fixture
def pruned_at_8(monkeypatch, attempt) -> TrialInput:
    monkeypatch.setitem(
        __import__("pipelines.sweep.study", fromlist=["PRUNERS"]).PRUNERS, "at 8", lambda _rule: Ends(8)
    )
    return replace(attempt, pruning=Pruning("at 8", 4, 12))


def test_the_score_is_the_mean_over_student_seeds(trained, attempt, tmp_path):
    answer = evaluate_point(attempt, [])
    assert (answer.ended.state, answer.ended.top1_pct, answer.failed) == ("COMPLETE", 65.0, "")
    assert answer.ended.curve == {4: 20.0, 8: 40.0, 12: 60.0}, "of the first student seed"
    found = {"evaluations": [FIRST.key, SECOND.key], "top1_pct": [60.0, 70.0], "tested": 140}
    assert answer.ended.facts == found | {"ran_precision": ["fp32"]}
    assert answer.scores[SECOND.key].curve == {4: 10.0, 8: 30.0}
    assert list(scratch_folder(tmp_path, "sweep-k").iterdir()) == []


def test_evaluations_cache_logits_as_the_driver_decides(trained, attempt):
    evaluate_point(replace(attempt, cached_logits={SECOND.key: LogitsCache(1000, True)}), [])
    assert trained.cached_logits == [None, LogitsCache(1000, True)]


def test_a_store_that_is_away_for_a_while_ends_no_trial(trained, attempt):
    trained.away = 2
    answer = evaluate_point(attempt, [])
    assert (answer.ended.top1_pct, answer.failed) == (65.0, "")
    assert trained.asked == [*FIRST.parents()] * 3 + [*SECOND.parents()], "set and teachers, before the training"


def test_a_store_that_stays_away_is_named_to_the_driver(trained, attempt, monkeypatch):
    monkeypatch.setattr("pipelines.sweep.worker.ANSWER_WITHIN_S", 0.0)
    trained.away = 1
    answer = evaluate_point(attempt, [])
    assert (answer.ended, answer.away, answer.failed) == (None, True, "The store does not respond.")
    assert evaluate_point(attempt, []).ended.top1_pct == 65.0


def test_a_pruned_trial_trains_no_further_student(trained, pruned_at_8):
    answer = evaluate_point(pruned_at_8, [])
    assert trained.keys == [FIRST.key]
    assert (answer.ended.state, answer.ended.top1_pct, answer.ended.curve) == ("PRUNED", None, {4: 20.0, 8: 40.0})
    assert answer.ended.facts["stopped"] == "pruned after epoch 8"
    assert answer.scores[FIRST.key].top1_pct is None


def test_what_is_known_is_not_trained_again(trained, attempt):
    first = evaluate_point(attempt, [])
    known = first.scores
    again = evaluate_point(replace(attempt, known=known), [])
    assert again.ended == first.ended
    assert trained.keys == [FIRST.key, SECOND.key]


def test_a_known_score_is_pruned_where_it_would_have_been(trained, attempt, pruned_at_8):
    known = evaluate_point(attempt, []).scores
    fresh, replayed = evaluate_point(pruned_at_8, []), evaluate_point(replace(pruned_at_8, known=known), [])
    assert replayed.ended == fresh.ended


def test_a_score_that_was_stopped_is_trained_where_it_would_go_on(trained, attempt, pruned_at_8):
    known = evaluate_point(pruned_at_8, []).scores
    trained.keys.clear()
    assert evaluate_point(replace(attempt, known=known), []).ended.top1_pct == 65.0
    assert trained.keys == [FIRST.key, SECOND.key]


def test_divergence_is_a_poor_trial_and_not_a_failure(trained, attempt):
    trained.error = Diverged("The loss is nan in epoch 9.")
    answer = evaluate_point(attempt, [])
    assert (answer.ended.state, answer.ended.facts["stopped"]) == ("PRUNED", "The loss is nan in epoch 9.")
    trained.error, known = None, answer.scores
    assert evaluate_point(replace(attempt, known=known), []).ended == answer.ended
    assert trained.keys == [FIRST.key]


def test_files_that_are_damaged_between_check_and_use_are_fetched_again(trained, attempt, monkeypatch):
    whole, damaged = perform.perform, [DataCorrupt("The set is damaged.", "make it again")]

    def opened(*words, **options):
        if damaged:
            raise damaged.pop()
        return whole(*words, **options)

    monkeypatch.setattr(perform, "perform", opened)
    assert evaluate_point(attempt, []).ended.top1_pct == 65.0
    assert trained.asked == [*FIRST.parents()] * 2 + [*SECOND.parents()]


@pytest.mark.parametrize("error", [DataCorrupt("The set is damaged.", "make it again"), KeyError("nobody knows")])
def test_anything_else_is_a_failure_with_its_reason(trained, attempt, error):
    trained.error = error
    answer = evaluate_point(attempt, [])
    assert answer.ended is None
    assert answer.failed == (str(error) if isinstance(error, DataCorrupt) else "KeyError: 'nobody knows'")


def test_a_score_survives_json():
    score = Score(curve={4: 1.5}, top1_pct=2.5, tested=3, wall_s=0.1)
    plain = {**score.model_dump(), "curve": {"4": 1.5}}
    assert Score.model_validate(plain) == score
