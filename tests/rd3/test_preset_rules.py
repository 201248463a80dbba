"""Rules of presets: when they apply, in which order, and what is said about bad ones."""

from __future__ import annotations

import itertools

import pytest
import yaml

from rd3.errors import BadValue, UnknownName, Unsupported
from rd3.preset_rules import Case, Condition
from rd3.protocol import Preset, preset_reader, read_preset, resolve_protocol

HEAD = "name: mine\nsource: me\nall: {epochs: 9, zeta: 1.0, batch_size: 4, augmentation: [flip]}\n"


def plain_loop(rules: list[dict], default: float, case: Case) -> float:
    """The last rule all of whose conditions hold, one condition after the other."""
    found = default
    for rule in rules:
        when = rule["when"]
        checks = [
            "students" not in when or case.student in when["students"],
            "datasets" not in when or case.dataset in when["datasets"],
            "same_network" not in when or case.same_network is when["same_network"],
        ]
        for name, value in (("ipc", case.ipc), ("classes", case.classes)):
            wanted = when.get(name, {})
            if isinstance(wanted, list):
                checks.append(value in wanted)
            else:
                checks += [value >= wanted.get("min", value), value <= wanted.get("max", value)]
        if all(checks):
            found = rule["then"]["lr"]
    return found


RULES = [
    {"when": {"same_network": False}, "then": {"lr": 0.1}},
    {"when": {"students": ["a", "b"]}, "then": {"lr": 0.2}},
    {"when": {"students": ["b"], "ipc": {"min": 10}}, "then": {"lr": 0.3}},
    {"when": {"datasets": ["x"], "ipc": {"min": 2, "max": 49}}, "then": {"lr": 0.4}},
    {"when": {"classes": [100, 1000], "ipc": [1, 50]}, "then": {"lr": 0.5}},
    {"when": {"classes": {"max": 10}, "same_network": True, "students": ["c"]}, "then": {"lr": 0.6}},
]


def test_the_last_rule_that_holds_takes_precedence():
    rule = Preset.model_validate(yaml.safe_load(HEAD) | {"rules": RULES})
    seen = set()
    product = itertools.product([True, False], "abcd", "xy", [10, 100, 1000], [1, 9, 10, 49, 50, 51])
    for case in itertools.starmap(Case, product):
        found = resolve_protocol(rule, factor=1, set_size=10**6, **case._asdict()).lr
        assert found == plain_loop(RULES, 1e-3, case)
        assert rule.field("lr", case) == (found if found != 1e-3 else None)
        seen.add(found)
    assert seen == {1e-3, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}


def test_rules_come_after_the_sections_by_network_and_before_overrides():
    text = HEAD + "same_network: {zeta: 2.0}\nother_network: {zeta: 3.0}\n"
    rule = Preset.model_validate(
        yaml.safe_load(text) | {"rules": [{"when": {"ipc": [1], "same_network": False}, "then": {"zeta": 4.0}}]}
    )
    cases = [(True, 1), (False, 1), (False, 2)]
    found = [
        resolve_protocol(rule, factor=1, same_network=same, set_size=10, ipc=ipc, overrides=changed).zeta
        for changed in ({}, {"zeta": 5.0})
        for same, ipc in cases
    ]
    assert found == [2.0, 4.0, 3.0, 5.0, 5.0, 5.0]


def test_a_rule_may_set_a_loss_a_setting_and_an_augmentation():
    rules = [
        {"when": {"ipc": [1]}, "then": {"temperature": 4.0, "flip.probability": 0.25}},
        {"when": {"ipc": [2]}, "then": {"loss": "mse_gt", "augmentation": ["cutmix"]}},
    ]
    rule = Preset.model_validate(yaml.safe_load(HEAD) | {"rules": rules})
    one, two = (resolve_protocol(rule, factor=1, same_network=True, set_size=10, ipc=ipc) for ipc in (1, 2))
    assert (one.value("temperature"), one.value("flip.probability")) == (4.0, 0.25)
    assert (two.loss.name, two.value("augmentation")) == ("mse_gt", [{"cutmix": {}}])


def test_rules_are_written_as_they_are_read():
    rule = Preset.model_validate(yaml.safe_load(HEAD) | {"rules": RULES})
    plain = rule.model_dump(mode="json")
    assert plain["rules"] == RULES
    assert Preset.model_validate(yaml.safe_load(yaml.safe_dump(plain))) == rule


@pytest.mark.parametrize("fact", ["student", "dataset", "classes", "ipc"])
def test_a_fact_that_a_rule_asks_for_must_be_given(fact):
    given = {"student": "resnet18", "dataset": "cifar10", "classes": 10, "ipc": 1}
    when = {"students": ["resnet18"], "datasets": ["cifar10"], "classes": [10], "ipc": [1]}
    name = {"student": "students", "dataset": "datasets"}.get(fact, fact)
    rule = Preset.model_validate(
        yaml.safe_load(HEAD) | {"rules": [{"when": {name: when[name]}, "then": {"zeta": 2.0}}]}
    )
    assert rule.facts == {fact}
    assert resolve_protocol(rule, factor=1, same_network=True, set_size=10, **{fact: given[fact]}).zeta == 2.0
    with pytest.raises(BadValue, match=f"depends on {fact}, which is not given.*Fix: give {fact}"):
        resolve_protocol(rule, factor=1, same_network=True, set_size=10)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("[{when: {}, then: {zeta: 2.0}}]", "rules.0.when: .*states no condition; values for every student belong in"),
        ("[{when: {ipc: []}, then: {zeta: 2.0}}]", "rules.0.when.ipc: .*expected a list of integers, or {min"),
        ("[{when: {ipc: {min: 5, max: 2}}, then: {zeta: 2.0}}]", "rules.0.when.ipc: .*min 5 is greater than max 2"),
        ("[{when: {ipc: {any_of: [1], min: 2}}, then: {zeta: 2.0}}]", "rules.0.when.ipc: .*bounds, got both"),
        ("[{when: {ipc: {least: 5}}, then: {zeta: 2.0}}]", "rules.0.when.ipc.least: Extra inputs are not permitted"),
        ("[{when: {ipc: [one]}, then: {zeta: 2.0}}]", "rules.0.when.ipc.any_of.0: Input should be a valid integer"),
        ("[{when: {students: []}, then: {zeta: 2.0}}]", "rules.0.when.students: .*at least 1 item"),
        ("[{when: {student: [convnet]}, then: {zeta: 2.0}}]", "rules.0.when.student: Extra inputs"),
        ("[{when: {ipc: [1]}, then: {}}]", "rules.0.then: .*at least 1 item"),
        ("[{when: {ipc: [1]}, then: {zta: 2.0}}]", "rules.0: a protocol has no field 'zta'.*did you mean 'zeta'"),
        ("{when: {ipc: [1]}, then: {zeta: 2.0}}", "rules: Input should be a valid tuple"),
    ],
)
def test_a_bad_rule_is_one_sentence(tmp_path, rules, message):
    (tmp_path / "mine.yaml").write_text(f"{HEAD}rules: {rules}\n")
    with pytest.raises(BadValue, match=message) as error:
        preset_reader(tmp_path)("mine")
    assert "\n" not in error.value.message


def test_contradictory_rules_are_named():
    rule = Preset.model_validate(
        yaml.safe_load(HEAD) | {"rules": [{"when": {"ipc": [1]}, "then": {"loss": "kl", "labels": "hard"}}]}
    )
    with pytest.raises(BadValue, match="Protocol mine: loss 'kl' learns from soft labels, not from hard ones"):
        resolve_protocol(rule, factor=1, same_network=True, set_size=10, ipc=1)
    assert resolve_protocol(rule, factor=1, same_network=True, set_size=10, ipc=2).labels == "soft"


def test_an_incomplete_preset_is_not_resolved(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{HEAD}incomplete: [stored labels, a committee]\n")
    rule = read_preset(tmp_path / "mine.yaml")
    with pytest.raises(Unsupported, match=r"Protocol mine is incomplete, .*cannot express stored labels; a committee"):
        resolve_protocol(rule, factor=1, same_network=True, set_size=10)


def test_an_unknown_condition_value_never_holds():
    assert not Condition(students=("convnet",)).holds(Case(True, "resnet18"))
    with pytest.raises(UnknownName):
        resolve_protocol("no-such", factor=1, same_network=True, set_size=10)
