"""Resolution of presets against the paper's Tables 8 and 9."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rd3.component import Component
from rd3.errors import BadValue, UnknownName
from rd3.losses import LOSSES
from rd3.preset_rules import Case
from rd3.protocol import (
    Preset,
    merged,
    mistakes_in,
    number_type,
    preset_reader,
    presets,
    protocol_names,
    reductions,
    resolve_protocol,
)
from rd3.values import Frozen, digest, without_neutral


@pytest.mark.parametrize(
    ("same", "size", "zeta", "batch"),
    [(True, 1000, 1.0, 50), (False, 1000, 2.0, 100), (True, 10, 1.0, 10), (False, 10, 2.0, 10), (False, 99, 2.0, 99)],
)
def test_rd3_resolves_by_student_and_caps_the_batch(same, size, zeta, batch):
    protocol = resolve_protocol("rd3", factor=1, same_network=same, set_size=size)
    assert (protocol.zeta, protocol.batch_size, protocol.epochs) == (zeta, batch, 400)
    assert (protocol.lr, protocol.weight_decay, protocol.precision) == (1e-3, 0.01, "auto")
    assert protocol.value("loss") == {"kl": {"temperature": 20.0, "scale_t2": False}}


def test_overrides_win_and_the_cap_holds():
    protocol = resolve_protocol(
        "rd3", factor=2, same_network=True, set_size=20, overrides={"batch_size": 64, "patch_shuffle.grid": 1}
    )
    assert (protocol.batch_size, protocol.value("patch_shuffle.grid")) == (20, None)


def test_hard_labels_mean_cross_entropy():
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"labels": "hard"})
    assert protocol.value("loss") == {"ce": {"hard_mix": "weighted"}}


@pytest.mark.parametrize(
    ("name", "batch"),
    [("sre2l", (1024, 2)), ("d4m", (1024, 2)), *((name, (128, 1)) for name in ("cda", "dwa", "pca-soft", "pca-hard"))],
)
def test_published_protocols_resolve_to_their_values(name, batch):
    """300 epochs, whatever the student's network."""
    same, other = (resolve_protocol(name, factor=2, same_network=one, set_size=10_000) for one in (True, False))
    assert same == other
    assert (same.epochs, same.zeta, same.lr, same.weight_decay) == (300, 1.0, 1e-3, 0.01)
    assert (same.batch_size, same.accumulation_steps) == batch
    crop, flip = {"resized_crop": {"min_area": 0.08, "antialias": True}}, {"flip": {"probability": 0.5}}
    hard = name == "pca-hard"
    assert same.value("augmentation") == [crop, flip, *([] if hard else [{"cutmix": {}}])]
    assert (same.labels, same.loss.name) == (("hard", "ce") if hard else ("soft", "kl"))
    assert hard or same.value("temperature") == 20.0


def resolved(factor: int = 1, **overrides):
    return resolve_protocol("rd3", factor=factor, same_network=True, set_size=100, overrides=overrides)


def test_patches_follow_the_dataset():
    small, large = resolved(1), resolved(2)
    assert small.value("augmentation") == [{"flip": {"probability": 0.5}}, {"cutmix": {}}]
    shuffle, crop = {"patch_shuffle": {"grid": 2}}, {"resized_crop": {"min_area": 0.5, "antialias": True}}
    assert large.value("augmentation") == [shuffle, crop, *small.value("augmentation")]


def test_shuffle_and_crop_are_two_things():
    assert [step.name for step in resolved(**{"resized_crop.min_area": 0.5}).augmentation] == [
        *("resized_crop", "flip", "cutmix")
    ]
    both = resolved(2, **{"resized_crop.min_area": 0.08})
    assert (both.value("patch_shuffle.grid"), both.value("resized_crop.min_area")) == (2, 0.08)


@pytest.mark.parametrize("steps", [[], ["cutmix"], ["resized_crop", "cutmix"], ["resized_crop", "flip", "cutmix"]])
def test_a_list_of_augmentations_replaces_the_rule(steps):
    """The ladder of the paper's Figure 7."""
    assert [step.name for step in resolved(2, augmentation=steps).augmentation] == steps


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"epochs": np.int64(3)}, {"epochs": 3}),
        ({"temperature": np.float32(2)}, {"temperature": 2.0}),
        ({"lr": torch.tensor(0.5)}, {"lr": 0.5}),
        ({"test_epochs": np.arange(1, 3)}, {"test_epochs": [1, 2]}),
        ({"test_epochs": range(1, 3)}, {"test_epochs": [1, 2]}),
        ({"loss": {"kl": {"temperature": np.float32(3)}}}, {"loss": {"kl": {"temperature": 3.0}}}),
    ],
)
def test_numbers_of_numpy_and_torch_are_those_of_python(given, plain):
    case = {"factor": 1, "same_network": True, "set_size": 10}
    assert resolve_protocol("rd3", **case, overrides=given) == resolve_protocol("rd3", **case, overrides=plain)


@pytest.mark.parametrize("value", [{1, 2}, object(), len])
def test_what_no_file_could_hold_is_refused(value):
    with pytest.raises(BadValue, match=f"Protocol rd3: zeta is of type {type(value).__name__}"):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"zeta": value})


def test_the_same_loss_keeps_its_settings_and_another_begins_anew():
    rule = presets()["rd3"].model_copy(update={"all": presets()["rd3"].all | {"temperature": 4}})
    frame = {"factor": 1, "same_network": True, "set_size": 10}
    assert resolve_protocol(rule, **frame, overrides={"scale_t2": True}).value("loss") == {
        "kl": {"temperature": 4.0, "scale_t2": True}
    }
    assert resolve_protocol(rule, **frame, overrides={"loss": {"kl": {"scale_t2": True}}}).value("temperature") == 4
    assert resolve_protocol(rule, **frame, overrides={"loss": "mse_gt"}).value("loss") == {"mse_gt": {"gamma": 0.025}}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"temprature": 4}, UnknownName, "did you mean 'temperature'"),
        ({"temperature": -1}, BadValue, "temperature: Input should be greater than 0"),
        ({"epochs": "many"}, BadValue, "epochs: Input should be a valid integer"),
        ({"labels": "hard", "loss": "kl"}, BadValue, "loss 'kl' learns from soft labels, not from hard ones"),
        ({"test_epochs": [500]}, BadValue, "outside 1..400"),
        (
            {"factor": 2},
            UnknownName,
            r"two settings now: patch_shuffle.grid and resized_crop.min_area",
        ),
        ({"mix": "none"}, UnknownName, r"no field 'mix'.*list the steps in `augmentation`"),
        ({"labels": "hard", "temperature": 3}, BadValue, "Loss 'ce' has no setting 'temperature'.*use loss dkd or kl"),
        ({"loss": {"kl": {"temp": 3}}}, UnknownName, "Loss 'kl' has no setting 'temp'.*did you mean 'temperature'"),
        ({"loss": "klo"}, UnknownName, "no loss 'klo'.*did you mean 'kl'"),
        ({"loss": 3}, BadValue, "Protocol rd3: loss: Input should be a valid dictionary"),
        ({"loss": {"kl": 0}}, BadValue, "Protocol rd3: loss.settings: Input should be a valid dictionary"),
        ({"augmentation": "flip"}, BadValue, "Protocol rd3: augmentation: Input should be a valid array"),
        ({"augmentation": [{"flip": False}]}, BadValue, "augmentation.0.settings: Input should be an object"),
        ({"augmentation": ["flop"]}, UnknownName, "no augmentation 'flop'.*did you mean 'flip'"),
        ({"augmentation": ["flip", "flip"]}, BadValue, "augmentation 'flip' is listed twice"),
        ({"augmentation": ["cutmix", "flip"]}, BadValue, "'cutmix' mixes images, so nothing can come after it"),
        ({"augmentation": [{"flip": {"p": 1}}]}, UnknownName, "Augmentation 'flip' has no setting 'p'"),
        ({"flip.probability": True}, BadValue, "flip.probability: Input should be a valid number"),
        ({"mixup.alpha": 0.3}, BadValue, "The augmentation has no 'mixup'.*Fix: list mixup in `augmentation`"),
        ({"loss": "mse_gt", "hybrid": "softmax"}, BadValue, "hybrid 'softmax' needs a temperature"),
        ({"drop_at": [0.5, 0.3]}, BadValue, r"drop_at \[0.5, 0.3\] are not increasing shares between 0 and 1"),
        ({"drop_at": [1.0]}, BadValue, "not increasing shares between 0 and 1"),
        ({"batch_size": 1}, BadValue, "batches have one image; batch normalisation needs two"),
        ({"batch_size": "32"}, BadValue, "batch_size: Input should be a valid integer"),
        ({"lr": float("inf")}, BadValue, "lr: Input should be a finite number"),
        ({"temperature": float("inf")}, BadValue, "temperature: Input should be a finite number"),
        ({"ema": 1.0}, BadValue, "ema: Input should be less than 1"),
        ({"weight_decay_on": "none"}, BadValue, "weight_decay_on: Input should be 'matrices' or 'all'"),
    ],
)
def test_bad_fields_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=overrides)


@pytest.mark.parametrize(
    ("steps", "size", "epochs"),
    [(4000, 10, 400), (4000, 100, 40), (149, 100, 1), (151, 100, 2), (1, 100, 1)],
)
def test_image_steps_are_epochs_of_a_set(steps, size, epochs):
    found = resolve_protocol(
        "rd3", factor=1, same_network=True, set_size=size, overrides={"image_steps": steps, "loss": "mse_gt"}
    )
    given = {"epochs": epochs, "image_steps": steps, "loss": "mse_gt"}
    assert found == resolve_protocol("rd3", factor=1, same_network=True, set_size=size, overrides=given)
    assert found.epochs == epochs and "image_steps" not in found.model_dump()
    with pytest.raises(BadValue, match=rf"image_steps {steps} is {epochs} epochs of {size} images, but epochs is 7"):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=size, overrides=given | {"epochs": 7})


def test_image_steps_are_checked_as_fields_are(tmp_path):
    assert "image_steps" in protocol_names() and number_type("image_steps") is int
    assert mistakes_in("image_steps", 0) and mistakes_in("image_steps", "9") and not mistakes_in("image_steps", 9)
    for wrong in (0, 2.5, "9"):
        with pytest.raises(BadValue, match="Protocol rd3: image_steps: "):
            resolve_protocol("rd3", factor=1, same_network=True, set_size=9, overrides={"image_steps": wrong})
    assert merged({"image_steps": 9, "temperature": 3.0}, {"loss": "mse_gt"}) == {"image_steps": 9, "loss": "mse_gt"}
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsource: me\nall: {epochs: 3, image_steps: 9, zeta: 1.0, batch_size: 4, augmentation: []}\n"
    )
    with pytest.raises(BadValue, match=r"A preset does not set 'image_steps'.*Fix: set it in the grid"):
        resolve_protocol(preset_reader(tmp_path)("mine"), factor=1, same_network=True, set_size=9)


def test_what_came_later_is_in_no_key_until_it_is_set():
    plain = resolve_protocol("rd3", factor=1, same_network=True, set_size=10)
    assert (plain.warmup_epochs, plain.hybrid) == (0, "logits")
    keys, changes = (
        {digest(without_neutral(plain))},
        (
            {"warmup_epochs": 5},
            {"warmup_start": 0.01},
            {"hybrid": "balanced"},
            {"hybrid": "softmax"},
            {"ema": 0.99},
            {"weight_decay_on": "all"},
            {"test_resize": 36},
            {"drop_at": (0.5,)},
            {"drop_factor": 0.1},
        ),
    )
    for changed in changes:
        keys.add(digest(without_neutral(plain.model_copy(update=changed))))
    assert len(keys) == 10
    assert not {name for changed in changes for name in changed} & without_neutral(plain).keys()


def test_an_unknown_preset_is_named():
    with pytest.raises(UnknownName, match="did you mean 'rd3"):
        resolve_protocol("rd33", factor=1, same_network=True, set_size=10)


def test_fewer_epochs_than_published_are_a_reduction():
    case = Case(True, "resnet18", "cifar10", 10, 1)
    for name, rule in presets().items():
        if rule.incomplete:
            continue
        full = resolve_protocol(name, factor=1, set_size=10, **case._asdict())
        assert reductions(name, full, case) == ({"epochs": (full.epochs, 400)} if rule.reduces else {})
    cut = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"epochs": 3})
    assert reductions("rd3", cut, case) == {"epochs": (3, 400)}
    # 2000 epochs at IPC 10 are below the 3000 of IPC 1.
    assert reductions("minimax-hard", cut, case) == {"epochs": (3, 3000)}
    assert reductions("minimax-hard", cut, case._replace(ipc=10)) == {"epochs": (3, 2000)}


def test_a_users_own_presets_are_found_beside_those_that_ship(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsource: me\nreduces: rd3\nall: {epochs: 30, zeta: 1.5, batch_size: 4, augmentation: [flip]}\n"
    )
    preset_of = preset_reader(tmp_path)
    protocol = resolve_protocol(preset_of("mine"), factor=1, same_network=True, set_size=10)
    assert (protocol.epochs, protocol.zeta) == (30, 1.5)
    assert reductions(preset_of("mine"), protocol, Case(same_network=True)) == {"epochs": (30, 400)}
    assert preset_of("rd3") == presets()["rd3"]
    with pytest.raises(UnknownName, match="did you mean 'mine'"):
        preset_of("min")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: other\nsource: me\n", "calls its protocol 'other'.*Fix: name the file other.yaml"),
        ("name: mine\n", "mine.yaml is not a valid protocol: source: Field required"),
        ("name: [", "mine.yaml is not YAML"),
        ("name: mine\nsource: me\nreduces: rd4\nall: {epochs: 3}\n", "reduces 'rd4'.*use one of: .*rd3-reduced, rd3"),
        ("name: mine\nsource: me\nreduces: mine\nall: {epochs: 3}\n", "mine.yaml reduces 'mine'.*Fix: leave it out"),
        ("name: mine\nsource: me\nall: {epochs: 2020-01-01}\n", "mine.yaml holds a value that is neither text nor"),
        ("name: mine\nsource: me\nsame_network: {epochs: 3}\n", "mine.yaml sets no epochs for all students.*Fix: add"),
    ],
)
def test_a_bad_preset_file_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadValue, match=message):
        preset_reader(tmp_path)("mine")


def test_a_number_of_a_preset_may_be_written_as_1e_3(tmp_path):
    values = "epochs: 30, zeta: 1, batch_size: 4, augmentation: [flip], weight_decay: 5e-4, lr: 1e-3"
    rules = "rules: [{when: {ipc: [1]}, then: {lr: 2E-2}}]"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nsource: me\nall: {{{values}}}\n{rules}\n")
    of = preset_reader(tmp_path)("mine")
    one, two = (resolve_protocol(of, factor=1, same_network=True, set_size=10, ipc=ipc) for ipc in (1, 2))
    assert (one.lr, two.lr, two.weight_decay) == (0.02, 0.001, 0.0005)


def test_hidden_files_beside_presets_are_none(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: me\nall: {epochs: 30, augmentation: [flip]}\n")
    (tmp_path / ".#mine.yaml").symlink_to("user@host.1")  # Emacs, while changes are not saved
    (tmp_path / "._mine.yaml").write_bytes(b"\0\5\x16\7")  # macOS, on a disk of another system
    assert preset_reader(tmp_path)("mine").all["epochs"] == 30


@pytest.mark.parametrize("left_out", ["batch_size", "zeta"])
def test_a_preset_without_a_value_that_has_no_default_is_told_which(left_out):
    values = {"epochs": 30, "zeta": 1.5, "batch_size": 4, "augmentation": ["flip"]}
    del values[left_out]
    with pytest.raises(BadValue, match=f"^Protocol mine sets no {left_out} for this student.*Fix: add it to `all`"):
        resolve_protocol(Preset(name="mine", source="me", all=values), factor=1, same_network=True, set_size=10)


def test_a_preset_in_another_encoding_is_said(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("name: mine\nsource: réglage\n".encode("cp1252"))
    with pytest.raises(BadValue, match=r"not UTF-8 text: byte 0xe9 in line 2.*iconv -f WINDOWS-1252"):
        preset_reader(tmp_path)("mine")


def test_a_preset_that_ships_is_found_whatever_lies_in_the_users_folder(tmp_path):
    (tmp_path / "rd3.yaml").write_text("name: rd3\nsource: me\nall: {epochs: 1}\n")
    assert preset_reader(tmp_path)("rd3").all["epochs"] == 400


def test_the_names_of_a_protocol_are_worked_out_once_until_something_is_registered(monkeypatch):
    known = protocol_names()
    assert protocol_names() is known and "late" not in known

    class Late:
        class Settings(Frozen):
            late: int = 1

    monkeypatch.setitem(LOSSES._things, "late", Late)
    assert "late" in protocol_names()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"drop_factor": 0.5}, "drop_factor needs schedule 'multistep'"),
        ({"drop_at": [0.5]}, "drop_at needs schedule 'multistep'"),
        ({"warmup_start": 0.1}, "warmup_start needs warmup_epochs"),
        ({"label_top_k": 3}, "label_top_k needs soft_labels"),
    ],
)
def test_fields_that_nothing_reads_are_refused(fields, reason):
    with pytest.raises(BadValue, match=reason):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=fields)


def test_hard_labels_replace_the_soft_ones_of_a_preset():
    stored = Preset(
        name="x", source="x", all=presets()["rd3"].all | {"soft_labels": "stored", "zeta": 1.0, "batch_size": 5}
    )
    hard = resolve_protocol(stored, factor=1, same_network=True, set_size=50, overrides={"labels": "hard"})
    assert (hard.labels, hard.loss.name, hard.soft_labels) == ("hard", "ce", "online")


def test_contradictions_name_an_augmentation_that_is_not_registered():
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=100)
    with pytest.raises(UnknownName, match="no augmentation 'nope'"):
        protocol.model_copy(update={"augmentation": (Component(name="nope"),)}).contradictions()
