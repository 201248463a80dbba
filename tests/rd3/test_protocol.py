"""Resolution of presets against the paper's Tables 8 and 9."""

from __future__ import annotations

import pytest

from rd3.errors import BadValue, UnknownName
from rd3.protocol import preset_reader, presets, reductions, resolve_protocol
from rd3.recipe import _without_neutral, digest


@pytest.mark.parametrize(
    ("same", "size", "zeta", "batch"),
    [(True, 1000, 1.0, 50), (False, 1000, 2.0, 100), (True, 10, 1.0, 10), (False, 10, 2.0, 10), (False, 99, 2.0, 99)],
)
def test_rd3_resolves_by_student_and_caps_the_batch(same, size, zeta, batch):
    protocol = resolve_protocol("rd3", factor=1, same_network=same, set_size=size)
    assert (protocol.zeta, protocol.batch_size, protocol.epochs) == (zeta, batch, 400)
    assert (protocol.lr, protocol.weight_decay, protocol.temperature, protocol.loss) == (1e-3, 0.01, 20.0, "kl")


def test_overrides_win_and_the_cap_holds():
    protocol = resolve_protocol(
        "rd3", factor=2, same_network=True, set_size=20, overrides={"batch_size": 64, "factor": 1}
    )
    assert (protocol.batch_size, protocol.factor) == (20, 1)


def test_hard_labels_mean_cross_entropy():
    assert resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"labels": "hard"}).loss == "ce"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"temprature": 4}, UnknownName, "did you mean 'temperature'"),
        ({"temperature": -1}, BadValue, "temperature: Input should be greater than 0"),
        ({"epochs": "many"}, BadValue, "epochs: Input should be a valid integer"),
        ({"labels": "hard", "loss": "kl"}, BadValue, "need loss 'ce'"),
        ({"test_epochs": [500]}, BadValue, "outside 1..400"),
        ({"loss": "mse_gt", "hybrid": "softmax"}, BadValue, "has no raw logits, which loss 'mse_gt' compares"),
    ],
)
def test_bad_fields_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=overrides)


def test_what_came_later_is_in_no_key_until_it_is_set():
    plain = resolve_protocol("rd3", factor=1, same_network=True, set_size=10)
    assert (plain.warmup_epochs, plain.hybrid) == (0, "logits")
    keys = {digest(_without_neutral(plain))}
    for changed in ({"warmup_epochs": 5}, {"hybrid": "balanced"}, {"hybrid": "softmax"}):
        keys.add(digest(_without_neutral(plain.model_copy(update=changed))))
    assert len(keys) == 4
    assert not {"warmup_epochs", "hybrid"} & _without_neutral(plain).keys()


def test_an_unknown_preset_is_named():
    with pytest.raises(UnknownName, match="did you mean 'rd3"):
        resolve_protocol("rd33", factor=1, same_network=True, set_size=10)


def test_fewer_epochs_than_published_are_a_reduction():
    for name in presets():
        full = resolve_protocol(name, factor=1, same_network=True, set_size=10)
        assert reductions(name, full) == ({} if full.epochs == 400 else {"epochs": (full.epochs, 400)})
    cut = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"epochs": 3})
    assert reductions("rd3", cut) == {"epochs": (3, 400)}


def test_a_users_own_presets_are_found_beside_those_that_ship(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsource: me\nreduces: rd3\nall: {epochs: 30, zeta: 1.5, batch_size: 4}\n"
    )
    preset_of = preset_reader(tmp_path)
    protocol = resolve_protocol(preset_of("mine"), factor=1, same_network=True, set_size=10)
    assert (protocol.epochs, protocol.zeta) == (30, 1.5)
    assert reductions(preset_of("mine"), protocol) == {"epochs": (30, 400)}
    assert preset_of("rd3") == presets()["rd3"]
    with pytest.raises(UnknownName, match="did you mean 'mine'"):
        preset_of("min")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: other\nsource: me\n", "calls its protocol 'other'.*Fix: name the file other.yaml"),
        ("name: mine\n", "mine.yaml is no protocol: source: Field required"),
        ("name: [", "mine.yaml is not YAML"),
        ("name: mine\nsource: me\nreduces: rd4\nall: {epochs: 3}\n", "reduces 'rd4'.*use one of: rd3-reduced, rd3"),
        ("name: mine\nsource: me\nreduces: mine\nall: {epochs: 3}\n", "mine.yaml reduces 'mine'.*Fix: leave it out"),
        ("name: mine\nsource: me\nsame_network: {epochs: 3}\n", "mine.yaml says no epochs for all students.*Fix: add"),
    ],
)
def test_a_bad_preset_file_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadValue, match=message):
        preset_reader(tmp_path)("mine")


def test_a_preset_that_ships_is_found_whatever_lies_in_the_users_folder(tmp_path):
    (tmp_path / "rd3.yaml").write_text("name: rd3\nsource: me\nall: {epochs: 1}\n")
    assert preset_reader(tmp_path)("rd3").all["epochs"] == 400
