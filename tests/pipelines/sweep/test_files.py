"""Sweep files: what is read, and how each mistake is said."""

from __future__ import annotations

import pytest

from pipelines.grid.catalog import Catalog
from pipelines.grid.located_yaml import GridErrors
from pipelines.sweep.files import load_sweep, shipped_sweeps
from pipelines.sweep.study import distributions
from pipelines.sweep.values import Dimension
from rd3.errors import DataMissing, UnknownName
from rd3.losses import LOSSES, register_loss
from rd3.preset_rules import Case
from rd3.protocol import Preset, applicable_values, presets, resolve_protocol
from rd3.values import Frozen
from tests.pipelines.sweep_text import parse_sweep

FILE = """
name: mine
methods: [random]
dataset: digits
ipc: 5
teacher: resnet18_w16
protocol: rd3-reduced
space:
  lr: {low: 0.001, high: 0.1, log: true}
trials: 3
"""
SPACE = "  lr: {low: 0.001, high: 0.1, log: true}\n"


def mistakes(text: str) -> list[str]:
    with pytest.raises(GridErrors) as caught:
        parse_sweep(text, "x")
    assert str(caught.value).startswith("Sweep x has ")
    return [str(problem) for problem in caught.value.problems]


def space(text: str, **other: str) -> str:
    """The file with another space, and other lines changed."""
    found = FILE.replace(SPACE, f"  {text}\n")
    for key, value in other.items():
        lines = [line for line in found.splitlines() if not line.startswith(f"{key}:")]
        found = "\n".join([*lines, f"{key}: {value}"])
    return found


def test_what_a_file_says_and_what_it_leaves_out():
    sweep = parse_sweep(FILE, "x")
    assert (sweep.name, sweep.trials, sweep.batch, sweep.sampler, sweep.pruner) == ("mine", 3, 4, "tpe", "median")
    assert (sweep.student_seeds, sweep.test_seeds, sweep.student) == ((0,), (0, 1, 2), None)
    assert sweep.space == (Dimension(field="lr", low=0.001, high=0.1, log=True),)


def test_a_sweep_of_an_unsupported_loss_is_a_mistake():
    [problem] = mistakes(FILE.replace("rd3-reduced", "{rd3-reduced: {loss: crld}}"))
    assert "Loss 'crld' is unsupported: it compares two views of every image" in problem


@pytest.mark.parametrize("name", shipped_sweeps())
def test_every_shipped_sweep_is_right(name):
    assert load_sweep(name).name == name


def test_the_type_of_a_field_decides_between_whole_numbers_and_others():
    text = space("epochs: {low: 10, high: 40, step: 10}\n  zeta: {low: 1, high: 2}\n  scale_t2: [true, false]")
    kinds = {name: type(one).__name__ for name, one in distributions(parse_sweep(text, "x").space).items()}
    assert kinds == {"epochs": "IntDistribution", "zeta": "FloatDistribution", "scale_t2": "CategoricalDistribution"}


def test_all_mistakes_come_at_once_each_with_its_line():
    text = FILE.replace("[random]", "[randm]").replace("trials: 3", "trials: 0\nsudent: x").replace("lr:", "lrr:")
    assert mistakes(text) == [
        "methods[0] (line 3): There is no method 'randm'. Fix: did you mean 'random'?",
        "space.lrr (line 9): A protocol has no field 'lrr'. Fix: did you mean 'lr'?",
        "trials (line 10): Expected an integer of at least 1, got the number 0.",
        "sudent (line 11): A sweep has no key 'sudent' here. Fix: did you mean 'student'?",
    ]


@pytest.mark.parametrize("key", ["methods", "dataset", "ipc", "teacher", "protocol", "space", "trials"])
def test_a_missing_key_is_named(key):
    rest = FILE.replace(SPACE, "").replace("space:\n", "space: {lr: {low: 0.1, high: 1}}\n")
    text = "\n".join(line for line in rest.splitlines() if not line.startswith(f"{key}:"))
    assert mistakes(text) == [f"the file (line 2): The key {key!r} is missing. Fix: add `{key}:`"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dataset", "digit", "dataset (line 10): There is no dataset 'digit'. Fix: did you mean 'digits'?"),
        ("ipc", "0", "ipc (line 10): Expected an integer of at least 1, got 0."),
        ("ipc", "[1]", "ipc (line 10): Expected an integer, got a list."),
        ("teacher", "resnet18_w61", "teacher (line 10): Dataset digits has no teacher 'resnet18_w61'."),
        ("teacher", "[resnet18]", "teacher (line 10): Expected a role, got a list."),
        ("student", "resnet81", "student (line 11): There is no network 'resnet81'."),
        ("protocol", "rd4", "protocol (line 10): There is no protocol 'rd4'. Fix: did you mean 'rd3'?"),
        ("protocol", "{rd3: {epoch: 3}}", "protocol.rd3.epoch (line 10): A protocol has no field 'epoch'."),
        ("sampler", "tpee", "sampler (line 11): Expected tpe or random or grid, got the text"),
        ("pruner", "medium", "pruner (line 11): Expected median or successive_halving or hyperband or none"),
        ("batch", "0", "batch (line 11): Expected an integer of at least 1, got the number 0."),
        ("test_on", "test", "test_on (line 11): A sweep is tuned on validation images, got the text \"test\""),
        ("test", "{seeds: [0]}", "test.seeds (line 11): A sweep's test has no key 'seeds' here."),
        ("test", "{student_seeds: []}", "test.student_seeds (line 11): The list is empty"),
        ("name", "'a b'", "name (line 10): Invalid name 'a b'."),
    ],
)  # fmt: skip
def test_each_key_is_checked(key, value, said):
    text = "\n".join(line for line in FILE.splitlines() if not line.startswith(f"{key}:"))
    [found] = mistakes(f"{text}\n{key}: {value}\n")
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("lr: {low: 1, high: 0.1}", "space.lr (line 9): The range from 1 to 0.1 is empty."),
        ("lr: {low: 1, high: 1}", "space.lr (line 9): The range from 1 to 1 contains only one value."),
        ("lr: [0.1]", "space.lr (line 9): There is no choice: the list contains only 0.1."),
        ("lr: []", "space.lr (line 9): There is no choice: the list contains nothing."),
        ("lr: [0.1, 0.1]", "space.lr[1] (line 9): Duplicate of space.lr[0]."),
        ("lr: {low: 0.1}", "space.lr (line 9): The range has no 'high'."),
        ("lr: {low: 0.1, high: 1, lag: true}", "space.lr.lag (line 9): A range has no key 'lag' here."),
        ("lr: {low: 0.1, high: x}", "space.lr.high (line 9): Input should be a valid number"),
        ("lr: {low: 0.1, high: 1,5}", "space.lr.high (line 9): 1,5 is not one number in YAML"),
        ("lr: {low: 0.1, high: 1, log: 1}", "space.lr.log (line 9): Expected true or false"),
        ("lr: {low: 0.1, high: 1, log: true, step: 0.1}", "space.lr.step (line 9): A logarithmic range has no steps."),
        ("lr: {low: 0.1, high: 1, step: 0}", "space.lr.step (line 9): Expected a number above 0"),
        ("lr: {low: 0.1, high: 1, step: 0.4}", "space.lr.step (line 9): Steps of 0.4 from 0.1 do not reach 1."),
        ("lr: {low: 0.1, high: 1, step: 5.0e+10}", "space.lr.step (line 9): Steps of 50000000000.0 from 0.1 do not"),
        ("lr: .inf", "space.lr (line 9): .inf is not a finite number."),
        ("lr: {low: 0.1, high: 1, log: .nan}", "space.lr.log (line 9): .nan is not a finite number."),
        ("epochs: {low: 010, high: 40}", "space.epochs.low (line 9): 010 is 8 in YAML"),
        ("batch_size: [10, 020]", "space.batch_size[1] (line 9): 020 is 16 in YAML"),
        ("label_top_k: {low: null, high: 10}", "space.label_top_k.low (line 9): Expected a number, got nothing."),
        ("epochs: {low: 2, high: 9, step: 0.5}", "space.epochs.step (line 9): Expected an integer above 0"),
        ("weight_decay: {low: 0, high: 1, log: true}", "space.weight_decay.low (line 9): A logarithmic range cannot"),
        ("lr: 0.1", "space.lr (line 9): Expected a range or a list of choices, got the number 0.1."),
        ("scale_t2: {low: 0, high: 1}", "space.scale_t2 (line 9): The field 'scale_t2' is not a number."),
        ("loss: [kl, klo]", "space.loss[1] (line 9): There is no loss 'klo'."),
        ("loss: [kl, crld]", "space.loss[1] (line 9): Loss 'crld' is unsupported: it compares two views"),
        ("loss: [kl, ce]", "space.loss[1] (line 9): Loss 'ce' is used with hard labels only."),
        ("batch_size: [1, 2]", "space.batch_size[0] (line 9): Batch normalisation needs at least two images, got 1."),
        ("test_epochs: [[1], [2]]", "space.test_epochs (line 9): This field decides only when a trial"),
        ("gamma: [0.1, 0.2]", "space.gamma (line 9): This field has no effect here: loss kl does not use it."),
        ("hard_mix: [weighted, base]", "space.hard_mix (line 9): This field has no effect here: loss kl does not"),
        ("batch_size: {low: 50, high: 90}", "space.batch_size (line 9): This field has no effect here: the set"),
        ("batch_size: [50, 100]", "space.batch_size (line 9): This field has no effect here: the set has"),
        ("batch_size: [10, 100, 50]", "space.batch_size (line 9): Batch sizes 100 and 50 are equivalent: the set has"),
        ("batch_size: {low: 10, high: 90}", "space.batch_size (line 9): Batch sizes 50 and above are equivalent"),
        ("batch_size: {low: 30, high: 90, step: 20}", "space.batch_size (line 9): Batch sizes 50 and above are"),
        ("hybrid: [logits, balanced]", "space.hybrid (line 9): This field has no effect here: a single teacher"),
        ("soft_labels: [online, own]", "space.soft_labels (line 9): The sets of a sweep have no soft labels of"),
        ("resized_crop.antialias: [true, false]", "space.resized_crop.antialias (line 9): This field has no"),
    ],
)  # fmt: skip
def test_each_field_of_the_space_is_checked(field, said):
    [found] = mistakes(space(field))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("field", "protocol", "said"),
    [
        ("temperature: [1, 2]", "{rd3: {labels: hard}}", "loss ce does not use it"),
        ("teacher_mode: [eval, batch]", "{rd3: {labels: hard}}", "hard labels need no teacher"),
        ("beta2: [0.9, 0.99]", "{rd3: {optimizer: sgd}}", "the optimizer is sgd"),
        ("hard_mix: [weighted, base]", "{rd3: {labels: hard, augmentation: [flip]}}", "no augmentation mixes images"),
        ("scale_t2: [true, false]", "{rd3: {temperature: 1}}", "the temperature is 1"),
        ("loss: [ce, mse_gt]", "{rd3: {labels: hard}}", "Loss 'mse_gt' is used with soft labels only."),
        ("lr: [0.1, 0.2]", "{rd3: {soft_labels: own}}", "The sets of a sweep have no soft labels of their own."),
        ("lr: [0.1, 0.2]", "{rd3: {lr: 0.3}}", "This field is also set in 'protocol'."),
        ("loss: [kl, dkd]", "{rd3: {temperature: 4}}", "temperature of 'protocol' would not be used"),
    ],
)
def test_the_protocol_to_start_from_decides_what_matters(field, protocol, said):
    [found] = mistakes(space(field, protocol=protocol))
    assert said in found


@pytest.mark.parametrize(
    ("fields", "protocol", "said"),
    [
        ("loss: [kl, mse_gt]\n  soft_labels: [online, once]", "rd3", "loss 'mse_gt' and soft_labels 'once'. Protocol"),
        ("lr: [0.1, 0.2]\n  label_epochs: {low: 1, high: 60}", "{rd3: {soft_labels: stored, epochs: 60}}",
         "A trial cannot have label_epochs 60. Protocol rd3: label_epochs is not below the 60 epochs of training."),
        ("epochs: {low: 9, high: 60}", "{rd3: {soft_labels: stored, label_epochs: 9}}", "cannot have epochs 9."),
    ],
)  # fmt: skip
def test_no_point_contradicts_itself(fields, protocol, said):
    """A driver that comes to such a point could not go on, as it proposes the same point again."""
    [found] = mistakes(space(fields, protocol=protocol))
    assert said in found
    possible = fields.replace("high: 60", "high: 59").replace("low: 9", "low: 10").replace("mse_gt", "dkd")
    assert parse_sweep(space(possible, protocol=protocol), "x").space


def test_lists_and_steps_that_are_not_there():
    found = mistakes(space("mixup.alpha: [1, 2]\n  augmentation: [[flip], []]"))
    assert [text.partition(":")[0] for text in found] == [
        *("space.mixup.alpha[0] (line 9)", "space.mixup.alpha[1] (line 9)"),
        *("space.augmentation[0] (line 10)", "space.augmentation[1] (line 10)"),
    ]
    assert "has no 'mixup'" in found[0] and "Expected a scalar, got a list" in found[2]


def test_soft_labels_are_not_found_from_hard_ones():
    hard = Preset(
        name="hard",
        source="a test",
        all={"epochs": 9, "batch_size": 9, "zeta": 1, "labels": "hard", "loss": "ce", "augmentation": []},
    )
    with pytest.raises(GridErrors, match="The base protocol has hard labels"):
        parse_sweep(space("labels: [soft, hard]", protocol="hard"), "x", Catalog(protocols={"hard": hard}))


def test_a_field_matters_as_soon_as_one_trial_may_read_it():
    parse_sweep(space("loss: [kl, mse_gt]\n  gamma: [0.1, 0.2]\n  temperature: [1, 2]"), "x")
    parse_sweep(space("labels: [soft, hard]\n  hard_mix: [weighted, base]\n  temperature: [1, 2]"), "x")
    parse_sweep(space("batch_size: [10, 100]"), "x")
    parse_sweep(space("batch_size: {low: 10, high: 50, step: 10}"), "x")
    parse_sweep(space("batch_size: {low: 40, high: 80, step: 40}"), "x")
    parse_sweep(space("resized_crop.min_area: [0.5, 1]\n  resized_crop.antialias: [true, false]"), "x")
    parse_sweep(space("temperature: {low: 1, high: 2}\n  scale_t2: [true, false]"), "x")


def test_hard_labels_bring_their_loss():
    for labels, loss in (("hard", "ce"), ("soft", "kl")):
        found = applicable_values(presets()["rd3"], Case(same_network=True), {"labels": labels, "loss": "kl"})
        assert found == {"labels": labels, "loss": loss}


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"labels": "hard", "soft_labels": "stored"}, {"labels"}),
        ({"labels": "soft", "soft_labels": "online"}, {"labels", "soft_labels"}),
        ({"soft_labels": "once"}, {"soft_labels", "label_top_k", "label_dtype"}),
        ({"soft_labels": "stored"}, {"soft_labels", "label_top_k", "label_dtype", "label_epochs", "label_reuse"}),
        ({}, set()),
    ],
)
def test_a_trial_has_fields_of_stored_labels_where_it_stores_some(values, kept):
    proposed = {"label_top_k": 3, "label_dtype": "fp32", "label_epochs": 2, "label_reuse": "epochs"} | values
    found = applicable_values(presets()["rd3"], Case(same_network=True), proposed)
    assert found.keys() - {"loss"} == kept
    resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=found)
    without = {name: value for name, value in proposed.items() if name != "label_epochs"}
    assert "label_reuse" not in applicable_values(presets()["rd3"], Case(same_network=True), without)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("label_top_k: [2, 3]", "no trial has soft_labels 'once' or 'stored'"),
        ("label_epochs: [2, 3]\n  soft_labels: [online, once]", "no trial has soft_labels 'stored'"),
        ("label_reuse: [batches, epochs]\n  soft_labels: [online, stored]", "every epoch has labels of its own"),
        ("image_steps: [100, 200]", "All trials of a sweep train on sets of one size"),
    ],
)
def test_fields_of_labels_that_no_trial_uses_are_named(fields, reason):
    [found] = mistakes(space(fields))
    assert reason in found


def test_values_that_do_not_fit_the_dataset():
    [many] = mistakes(space("label_top_k: {low: 2, high: 50}\n  soft_labels: [once, stored]"))
    assert "A trial cannot have label_top_k 50" in many and "digits has 10 classes" in many
    [small] = mistakes(space("test_resize: [0, 16, 36]"))
    assert "A trial cannot have test_resize 16" in small and "cropped to 32 pixels" in small
    [small] = mistakes(space("test_resize: {low: 0, high: 64, step: 16}"))
    assert "A trial cannot have test_resize 16" in small
    assert parse_sweep(space("test_resize: {low: 0, high: 64, step: 32}"), "x").space


def test_a_loss_of_ones_own_that_takes_hard_labels_is_kept(monkeypatch):
    class Settings(Frozen):
        smoothing: float = 0.1

    LOSSES.names()
    monkeypatch.setattr(LOSSES, "_things", dict(LOSSES._things))
    register_loss("smoothed", Settings, labels="hard")(lambda logits, targets, settings: logits.sum())
    proposed = {"labels": "hard", "loss": "smoothed", "smoothing": 0.3}
    assert applicable_values(presets()["rd3"], Case(same_network=True), proposed) == proposed
    for field, protocol in (
        ("smoothing: {low: 0, high: 0.5}", "{rd3: {labels: hard, loss: smoothed}}"),
        ("loss: [ce, smoothed]", "{rd3: {labels: hard}}"),
    ):
        assert parse_sweep(space(field, protocol=protocol), "x").space
    [refused] = mistakes(space("loss: [kl, smoothed]"))
    assert "space.loss[1] (line 9): Loss 'smoothed' is used with hard labels only." in refused


def test_a_trial_has_the_settings_of_its_own_loss():
    rule, proposed = presets()["rd3"], {"temperature": 4, "gamma": 0.1, "hard_mix": "base", "flip.probability": 0.3}
    for fields, kept in (
        ({}, "temperature"), ({"loss": "mse_gt"}, "gamma"), ({"labels": "hard", "loss": "mse_gt"}, "hard_mix")
    ):  # fmt: skip
        found = applicable_values(rule, Case(same_network=True), fields | proposed)
        assert found.keys() - {"loss", "labels"} == {kept, "flip.probability"}


def test_a_grid_is_counted():
    [found] = mistakes(
        space("zeta: {low: 1, high: 2, step: 0.5}\n  scale_t2: [true, false]", sampler="grid", trials="7")
    )
    assert found.endswith("Sampler 'grid' has 6 points, got 7 trials. Fix: write `trials: 6` or less")
    [found] = mistakes(space("zeta: {low: 1, high: 2, step: 1.0e-8}", sampler="grid"))
    assert "lists all points of the space: 100,000,001, at most 100,000." in found
    [found] = mistakes(space("zeta: {low: 1, high: 1.0e+10, step: 1.0e-300}"))
    assert "are too many. Fix: choose a larger step" in found
    [found] = mistakes(space("zeta: {low: 1, high: 2}", sampler="grid"))
    assert found.endswith(
        "does not support continuous ranges. Fix: add a step, give a list, or use sampler tpe or random"
    )
    [found] = mistakes(space("epochs: {low: 10, high: 40, log: true}", sampler="grid"))
    assert found.endswith("ranges. Fix: give a list, or use sampler tpe or random"), "a logarithmic range has no steps"


def test_a_winner_may_not_take_the_name_of_a_protocol_that_ships(monkeypatch):
    monkeypatch.setattr("pipelines.sweep.check.presets", lambda: {"mine-random": None})
    [found] = mistakes(FILE)
    assert "The winner would have the name mine-random, which is a built-in protocol." in found


def test_a_second_winner_of_a_method_has_a_number_and_may_not_take_a_name_either(monkeypatch):
    monkeypatch.setattr("pipelines.sweep.check.presets", lambda: {"mine-rded-2": None})
    [found] = mistakes(FILE.replace("[random]", "[rded, rded: {factor: 1}]"))
    assert "The winner would have the name mine-rded-2" in found


@pytest.mark.parametrize("base", ["mine-rded", "mine-rded-2"])
def test_a_sweep_may_not_start_from_its_own_winner(base):
    own = Preset(name=base, source="a test", all={"epochs": 9, "batch_size": 9, "zeta": 1, "augmentation": []})
    text = FILE.replace("rd3-reduced", base).replace("[random]", "[rded, rded: {factor: 1}]")
    with pytest.raises(
        GridErrors, match=rf"protocol \(line 7\): The base protocol {base} has the name that the winner"
    ):
        parse_sweep(text, "x", Catalog(protocols={base: own}))
    parse_sweep(text.replace("name: mine", "name: other"), "x", Catalog(protocols={base: own}))


def test_no_file_and_no_name():
    with pytest.raises(UnknownName, match=r"There is no sweep 'dmo'.*did you mean 'demo'"):
        load_sweep("dmo")
    with pytest.raises(DataMissing, match=r"There is no sweep file dmo\.yaml.*rd3 list sweeps"):
        load_sweep("dmo.yaml")
    assert mistakes("") == [
        "the file: The file is empty. Fix: add methods, dataset, ipc, teacher, protocol, space, trials"
    ]
    assert mistakes("[1]") == ["the file (line 1): A sweep must be a mapping, got a list. Fix: start with `methods:`"]
