"""Resolution of presets against the paper's Tables 8 and 9."""

from __future__ import annotations

import pytest

from rd3.errors import BadValue, UnknownName
from rd3.protocol import presets, reductions, resolve_protocol


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
    ],
)
def test_bad_fields_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=overrides)


def test_an_unknown_preset_is_named():
    with pytest.raises(UnknownName, match="did you mean 'rd3"):
        resolve_protocol("rd33", factor=1, same_network=True, set_size=10)


def test_fewer_epochs_than_published_are_a_reduction():
    for name in presets():
        full = resolve_protocol(name, factor=1, same_network=True, set_size=10)
        assert reductions(name, full) == ({} if full.epochs == 400 else {"epochs": (full.epochs, 400)})
    cut = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"epochs": 3})
    assert reductions("rd3", cut) == {"epochs": (3, 400)}
