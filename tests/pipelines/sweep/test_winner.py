"""The winner as a protocol, and the record of its test."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import expand
from pipelines.grid.located_yaml import GridErrors
from pipelines.grid.values import Chosen
from pipelines.settings import Session
from pipelines.sweep.files import load_sweep
from pipelines.sweep.page import fairness, page_of
from pipelines.sweep.run import SweepOutcome, SweepRun, joined
from pipelines.sweep.study import Ended, Tuning
from pipelines.sweep.subject import Subject, subjects
from pipelines.sweep.winner import (
    WinnerTest,
    _rules_left,
    check_free,
    record,
    recorded_tests,
    winner_preset,
    winner_test,
    winners_of,
    write_preset,
)
from rd3.errors import BadValue
from rd3.preset_rules import Case, Rule
from rd3.protocol import Preset, preset, preset_reader, reductions, resolve_protocol
from rd3.recipe import EvaluationRecipe
from tests.pipelines.sweep_text import parse_sweep
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import open_objects
from tracking.report.sweep_report import write_sweep_report
from tracking.runs.sweeps import SweepRecords


@pytest.fixture
def here(tmp_path: Path) -> Session:
    return Session(f"sqlite:///{tmp_path / 'm.db'}", str(tmp_path / "artifacts"), tmp_path)


def found(here: Session, **changed) -> list[Subject]:
    sweep = load_sweep("demo").model_copy(update={"trials": 4, **changed})
    return subjects(sweep, Catalog.of(here))


def tuned(subject: Subject) -> Tuning:
    """Four trials, the third is the best."""
    tuning = Tuning(subject.sweep, subject.study, optuna.storages.InMemoryStorage())
    scores = (50.0, 60.0, 70.0, None)
    for (number, point), score in zip(tuning.next_batch().items(), scores, strict=True):
        facts = {"tested": 140} if score else {"stopped": "pruned after epoch 5"}
        end = Ended("COMPLETE" if score else "PRUNED", score, {5: 40.0 + number}, facts=facts)
        tuning.tell(number, point, end, datetime(2026, 1, 2))
    return tuning


def winner_and_base(subject: Subject, here: Session, made):
    grid = subject.sweep.test_grid({subject.label: subject.winner_name})
    return winner_test(subject, expand(grid, Catalog.of(here, {made.name: made})))


def test_everything_of_a_trial_stays_within_the_training_images(here):
    for subject in found(here):
        for recipe in subject.evaluations({"lr": 0.01}):
            assert (recipe.tested_on, recipe.data.split, recipe.training_only) == ("validation", "fit", True)
        assert subject.teacher.data.split == "fit"
        assert subject.teacher_saw == "trained without the validation images"
        assert {recipe.training_only for recipe in subject.expansion.recipes.values()} == {True}
        assert subject.protocol({}).test_epochs == (5, 10, 15, 20, 25, 30, 35)


def test_the_methods_share_a_space_and_differ_in_their_studies(here):
    one, other = found(here)
    assert (one.label, other.label) == ("random", "rded")
    assert one.key != other.key
    assert found(here, test_seeds=(7,))[0].key == one.key, "what is tested later tunes nothing"
    assert found(here, seed=1)[0].key != one.key
    together = joined([one.expansion, other.expansion], one.sweep)
    assert set(together.recipes) == {*one.expansion.recipes, *other.expansion.recipes}
    assert "Each of the 2 methods has its own study with the same space and the same budget" in fairness(one.sweep)


def test_a_method_that_comes_twice_is_numbered(here):
    twice = (Chosen(name="rded"), Chosen(name="rded", values={"factor": 1}))
    assert [subject.label for subject in found(here, methods=twice)] == ["rded", "rded-2"]


def test_a_method_that_cannot_make_the_set_is_refused_before_any_trial(here):
    with pytest.raises(GridErrors, match=r"Sweep demo has 2 mistakes(.|\n)*126 training images"):
        found(here, ipc=127)


def test_such_a_mistake_names_the_file(here, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(re.sub(r"\nipc: .*", "\nipc: 127", load_sweep("demo").text))
    with pytest.raises(GridErrors, match=rf"Sweep {re.escape(str(path))} has 2 mistakes"):
        subjects(load_sweep(path), Catalog.of(here))


def test_the_preset_is_the_trial(here, tmp_path):
    subject = found(here)[0]
    best = tuned(subject).best()
    made = winner_preset(subject, best, 4)
    write_preset(made, tmp_path / "presets", "demo")
    read = preset_reader(tmp_path / "presets")("demo-random")
    assert read == made
    protocol = resolve_protocol(read, factor=1, same_network=True, set_size=50)
    assert protocol == subject.protocol(best.params).model_copy(update={"test_epochs": ()})
    assert read.source.startswith(
        f"sweep demo, study {subject.study} (key {subject.key}): trial 2 of 4, 70.00 % on 140"
    )
    assert reductions(read, protocol, Case(same_network=True)) == {"epochs": (40, 400)}, (
        "as the protocol that it started from"
    )
    other = resolve_protocol(read, factor=1, same_network=False, set_size=50)
    assert (other.zeta, other.lr) == (protocol.zeta, protocol.lr)


def test_a_winner_keeps_the_rules_of_its_base_but_for_what_was_tuned(here, tmp_path):
    rules = [
        {"when": {"ipc": [5]}, "then": {"lr": 0.5, "weight_decay": 0.3}},
        {"when": {"students": ["convnet"]}, "then": {"lr": 0.7}},
        {"when": {"ipc": [6]}, "then": {"weight_decay": 0.1}},
    ]
    own = Preset.model_validate(preset("rd3-reduced").model_dump(mode="json") | {"name": "own", "rules": rules})
    sweep = load_sweep("demo").model_copy(update={"trials": 4, "protocol": Chosen(name="own")})
    [subject, *_others] = subjects(sweep, Catalog.of(here, {"own": own}))
    best = tuned(subject).best()
    assert "lr" in best.params and "weight_decay" not in best.params and sweep.ipc == 5
    assert subject.protocol({}).lr == 0.5 and subject.protocol(best.params).weight_decay == 0.3
    write_preset(winner_preset(subject, best, 4), tmp_path, "demo")
    read = preset_reader(tmp_path)("demo-random")
    assert [rule.then for rule in read.rules] == [{"weight_decay": 0.3}, {"weight_decay": 0.1}]
    facts = {"student": "convnet", "dataset": "digits", "classes": 10}
    protocols = [
        resolve_protocol(read, factor=1, same_network=True, set_size=50, ipc=ipc, **facts) for ipc in (5, 6, 7)
    ]
    assert [one.weight_decay for one in protocols] == [0.3, 0.1, 0.01]
    assert {one.lr for one in protocols} == {best.params["lr"]}


def test_a_winner_of_a_users_own_protocol_reduces_nothing(here, tmp_path):
    own = preset("rd3").model_copy(update={"name": "own", "all": {"epochs": 30, "augmentation": []}})
    sweep = load_sweep("demo").model_copy(update={"trials": 4, "protocol": Chosen(name="own")})
    [subject, *_others] = subjects(sweep, Catalog.of(here, {"own": own}))
    made = winner_preset(subject, tuned(subject).best(), 4)
    write_preset(made, tmp_path, "demo")
    read = preset_reader(tmp_path)("demo-random")
    protocol = resolve_protocol(read, factor=1, same_network=True, set_size=50)
    assert (read.reduces, protocol.epochs, reductions(read, protocol, Case(same_network=True))) == (None, 30, {})


def winner_of(catalog: Catalog, params: dict[str, Any], **changed: Any) -> tuple[Subject, Preset]:
    """The first subject of the demo sweep with some keys changed, and the preset of a trial with these values."""
    plain = yaml.safe_load(files("pipelines").joinpath("sweeps/demo.yaml").read_text()) | changed
    subject = subjects(parse_sweep(yaml.safe_dump(plain), "demo", catalog), catalog)[0]
    facts = {"datetime_complete": datetime(2026, 1, 1), "number": 1, "value": 50.0, "user_attrs": {"tested": 140}}
    return subject, winner_preset(subject, SimpleNamespace(params=params, **facts), 4)


def test_a_winner_states_its_compute_as_epochs(here):
    catalog = Catalog.of(here)
    params = {"lr": 0.01, "zeta": 1.0, "temperature": 4.0, "batch_size": 25}
    subject, made = winner_of(catalog, params, protocol={"rd3-reduced": {"image_steps": 2000}})
    trial = subject.protocol(params).model_copy(update={"test_epochs": ()})
    assert trial.epochs == 2000 // (5 * 10) == 40, "of 5 images for each of 10 classes"
    assert resolve_protocol(made, factor=1, same_network=True, set_size=50) == trial
    grid = subject.sweep.test_grid({subject.label: subject.winner_name})
    tested = expand(grid, Catalog.of(here, {made.name: made})).recipes.values()
    assert trial in [one.protocol for one in tested if isinstance(one, EvaluationRecipe)]


@pytest.mark.parametrize("section", ["all", "same_network", "other_network"])
def test_a_winner_with_hard_labels_drops_the_fields_of_soft_ones(here, section):
    plain = preset("rd3-reduced").model_dump(mode="json")
    stored = plain[section] | {"soft_labels": "stored", "label_top_k": 2, "label_epochs": 3}
    own = Preset.model_validate(plain | {"name": "own", "reduces": None, section: stored})
    space = {"labels": ["soft", "hard"], "lr": {"low": 0.001, "high": 0.1, "log": True}}
    catalog = Catalog.of(here, {"own": own})
    _subject, made = winner_of(catalog, {"labels": "hard", "lr": 0.01}, protocol="own", space=space)
    for same in (True, False):
        resolved = resolve_protocol(made, factor=1, same_network=same, set_size=50)
        assert (resolved.labels, resolved.loss.name, resolved.soft_labels) == ("hard", "ce", "online")
    soft = winner_of(catalog, {"labels": "soft", "lr": 0.01}, protocol="own", space=space)[1]
    assert resolve_protocol(soft, factor=1, same_network=section != "other_network", set_size=50).label_top_k == 2


def test_only_a_winner_of_the_same_sweep_is_replaced(here, tmp_path):
    subject = found(here)[0]
    made = winner_preset(subject, tuned(subject).best(), 4)
    folder = here.presets
    path = write_preset(made, folder, "demo")
    write_preset(made, folder, "demo")
    for source in ("by hand", "sweep demonstration, study x", "sweep demo-random"):
        path.write_text(f"name: demo-random\nsource: {source}\nall: {{epochs: 9, augmentation: []}}\n")
        before = path.read_text()
        for attempt in (
            lambda: check_free(folder, "demo-random", "demo"),
            lambda: write_preset(made, folder, "demo"),
            lambda: SweepRun(subject.sweep, [subject], here).run(None),
        ):
            with pytest.raises(BadValue, match=r"demo-random\.yaml is not a winner of sweep demo, .*Fix: rename"):
                attempt()
        assert path.read_text() == before


def test_hard_labels_of_the_base_keep_their_loss(here):
    base = Chosen(name="rd3-reduced", values={"labels": "hard"})
    space = tuple(one for one in load_sweep("demo").space if one.field != "temperature")
    subject = found(here, protocol=base, space=space)[0]
    made = winner_preset(subject, tuned(subject).best(), 4)
    assert (made.all["labels"], made.all["loss"]) == ("hard", "ce")
    assert subject.evaluations({})[0].teachers == ()


def test_the_test_has_sets_and_teacher_of_all_training_images_on_the_same_seeds(here):
    subject = found(here)[0]
    winner, base = winner_and_base(subject, here, winner_preset(subject, tuned(subject).best(), 4))
    assert [recipe.student_seed for recipe in winner] == [recipe.student_seed for recipe in base] == [0, 1, 2]
    for recipe in (*winner, *base):
        assert (recipe.tested_on, recipe.data.split) == ("test", "train")
    assert {recipe.set for recipe in winner} == {recipe.set for recipe in base}
    assert winner[0].protocol != base[0].protocol


def test_every_test_of_a_target_is_listed_whatever_the_sweep_is_called(here, tmp_path):
    records = SweepRecords(open_objects(tmp_path / "artifacts"))
    subject = found(here)[0]
    trials = tuned(subject).trials()
    values = {}

    def find(_kind, key):
        return SimpleNamespace(result={"top1_pct": values[key]}) if key in values else None

    made = winner_preset(subject, trials[2], 4)
    test = winner_and_base(subject, here, made)
    record(subject, trials[2], test, records)
    record(subject, trials[2], test, records)
    [waiting] = recorded_tests(test, records, find)
    assert (waiting.current, waiting.text()["winner"], waiting.difference) == (True, "not tested yet", None)
    values |= dict(zip([one.key for one in test.winner], [70.0, 72.0, 74.0], strict=True))
    values |= dict(zip([one.key for one in test.base], [69.0, 70.0, 71.0], strict=True))
    [tested] = recorded_tests(test, records, find)
    assert (tested.winner, tested.base) == ([70.0, 72.0, 74.0], [69.0, 70.0, 71.0])
    assert tested.difference.mean == pytest.approx(2.0)
    assert tested.text()["difference"].startswith("+2.00 [−0.48, 4.48], p 0.07")
    constant = replace(tested, winner=[40.3, 41.3], base=[40.1, 41.1])
    assert constant.difference is None
    assert constant.text()["difference"] == "+0.20 (the same for all 2 student seeds, no interval)"

    renamed = found(here, name="other")[0]
    elsewhere = winner_and_base(renamed, here, winner_preset(renamed, trials[1], 4))
    assert elsewhere.target == test.target
    record(renamed, trials[1], elsewhere, records)
    both = recorded_tests(elsewhere, records, find)
    assert sorted((test.sweep, test.current, bool(test.winner)) for test in both) == [
        ("demo", False, True), ("other", True, False)
    ]  # fmt: skip


def test_tests_with_labels_of_another_teacher_are_not_listed(here, tmp_path):
    """Random sets are the same under every teacher."""
    records = SweepRecords(open_objects(tmp_path / "artifacts"))
    both = [found(here, teacher=name, student="convnet_w32")[0] for name in ("resnet18_w16", "convnet_w32")]
    one, other = (winner_and_base(each, here, winner_preset(each, tuned(each).best(), 4)) for each in both)
    assert one.winner[0].set == other.winner[0].set and one.winner[0].student == other.winner[0].student
    for subject, test in zip(both, (one, other), strict=True):
        record(subject, tuned(subject).best(), test, records)
    [mine], [its] = (recorded_tests(test, records, lambda _kind, _key: None) for test in (one, other))
    assert mine.current and its.current
    hard = [made.model_copy(update={"teachers": ()}) for made in one.base]
    assert len(recorded_tests(WinnerTest(hard, hard), records, lambda _kind, _key: None)) == 2
    early = {"evaluations": ["a", "b", "c"], "base": ["d"]}
    [known] = [known for known in records.tests(one.target) if known["teachers"] == list(one.base[0].teachers)]
    records.record_test(one.target, {name: known[name] for name in known if name != "teachers"} | early)
    for test in (one, other):
        assert len(recorded_tests(test, records, lambda _kind, _key: None)) == 2


def test_more_seeds_for_a_winner_are_no_other_winner(here, tmp_path):
    records = SweepRecords(open_objects(tmp_path / "artifacts"))
    subject, longer = found(here)[0], found(here, test_seeds=(0, 1, 2, 3))[0]
    trials = tuned(subject).trials()

    def tests(subject: Subject, trial):
        test = winner_and_base(subject, here, winner_preset(subject, trial, 4))
        record(subject, trial, test, records)
        return recorded_tests(test, records, lambda _kind, _key: None)

    tests(subject, trials[2])
    again = tests(longer, trials[2])
    assert [(len(test.seeds), test.current) for test in again] == [(3, True), (4, True)]
    assert winners_of(again) == 1
    other = tests(longer, trials[1])
    assert winners_of(other) == 2
    assert sorted((len(test.seeds), test.current) for test in other) == [(3, False), (4, False), (4, True)]


def test_a_record_that_does_not_say_its_protocol_counts_as_a_winner_of_its_own(here, tmp_path):
    records = SweepRecords(open_objects(tmp_path / "artifacts"))
    subject = found(here)[0]
    best = tuned(subject).best()
    test = winner_and_base(subject, here, winner_preset(subject, best, 4))
    record(subject, best, test, records)
    [known] = records.tests(test.target)
    early = {name: value for name, value in known.items() if name != "protocol"}
    records.record_test(test.target, {**early, "evaluations": ["a", "b", "c"]})
    tests = recorded_tests(test, records, lambda _kind, _key: None)
    assert (winners_of(tests), sorted(test.current for test in tests)) == (2, [False, True])


def test_the_report_says_what_was_done_and_draws_it(here, tmp_path):
    both = found(here)
    tunings = {subject.label: tuned(subject) for subject in both}
    outcome = SweepOutcome(both, tunings)
    subject = both[0]
    made = winner_preset(subject, tunings["random"].best(), 4)
    outcome.winners["random"] = made
    pair = winner_and_base(subject, here, made)
    records = SweepRecords(open_objects(tmp_path / "artifacts"))
    record(subject, tunings["random"].best(), pair, records)
    [test] = recorded_tests(pair, records, lambda _kind, _key: None)
    outcome.tests["random"] = [test, test, replace(test, protocol="another", current=False)]
    page = page_of(subject.sweep, outcome, Ledger(here.artifacts), "journal")
    written = write_sweep_report(page, tmp_path / "report")
    assert {"report.md", "report.html", "random-history.svg", "random-importance.svg", "random-parallel.svg"} <= set(
        written
    )
    text, html = (written[name].read_text() for name in ("report.md", "report.html"))
    for shown in (text, html):
        assert "trained without the validation images" in shown
        assert "2 winners were tested on the test split" in shown
        assert "4 of 4 trials: 3 complete, 1 pruned" in shown
        assert "pruned after epoch 5" in shown
        assert "protocols: [demo-random]" in shown and "protocols: [demo-rded]" not in shown
    assert html.count("data:image/svg+xml;base64,") == 6
    assert "http://" not in html and "https://" not in html


def test_a_winner_keeps_tuned_settings_of_an_augmentation_or_loss_that_a_rule_replaces():
    tuned_values = {"resized_crop.min_area": 0.3, "temperature": 7.0, "lr": 0.01}
    rules = [
        Rule.model_validate(rule)
        for rule in (
            {"when": {"ipc": 5}, "then": {"augmentation": [{"resized_crop": {"min_area": 0.5}}, "flip"], "lr": 1.0}},
            {"when": {"ipc": 6}, "then": {"loss": {"kl": {"temperature": 4.0}}}},
            {"when": {"ipc": 7}, "then": {"augmentation": ["flip"]}},
        )
    ]
    left = [rule.then for rule in _rules_left(rules, tuned_values)]
    assert left == [
        {"augmentation": [{"resized_crop": {"min_area": 0.5}}, "flip"], "resized_crop.min_area": 0.3},
        {"loss": {"kl": {"temperature": 4.0}}, "temperature": 7.0},
        {"augmentation": ["flip"]},
    ]
    base = {"epochs": 4, "zeta": 1.0, "batch_size": 5, "augmentation": ["resized_crop", "flip"]}
    made = Preset(name="x", source="x", all=base | tuned_values, rules=_rules_left(rules, tuned_values))
    for ipc, area, temperature in ((5, 0.3, 7.0), (6, 0.3, 7.0), (8, 0.3, 7.0)):
        found = resolve_protocol(made, factor=1, same_network=True, set_size=50, ipc=ipc)
        assert (found.value("resized_crop.min_area"), found.value("temperature")) == (area, temperature)


@pytest.mark.parametrize("base", ["sre2l-tiny", "sre2l-cifar", "gvbsm", "rd3-reduced"])
@pytest.mark.parametrize("loss", ["kl", "mse_gt", "dkd"])
def test_a_tuned_loss_that_is_the_bases_own_keeps_its_settings(here, base, loss):
    params = {"loss": loss, "lr": 0.01}
    space = {"loss": ["kl", "mse_gt", "dkd"], "lr": [0.01, 0.1]}
    subject, made = winner_of(Catalog.of(here), params, protocol=base, space=space)
    again = subject.frame.resolve(made, {})
    assert again == subject.protocol(params).model_copy(update={"test_epochs": ()})
