"""``rd3 teacher import``: what it prints, the options that its errors name, and roles that change hands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rd3.datasets import dataset_info
from rd3.models import build_network
from rd3.seeding import generator


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network of digits that always predicts 9, inside a wrapper and below prefixes."""
    network = build_network("convnet_d1", 10, 32, dataset_info("digits").normalisation, generator(1, "init")).network
    network.classifier.weight.data.zero_()
    network.classifier.bias.data.copy_(torch.arange(10))
    state = {f"_orig_mod.module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_a_teacher_at_chance_leaves_the_role_alone(rd3, home, weights):
    words = ("teacher", "import", weights, "--dataset", "digits", "--network", "convnet_d1", "--role", "mine")
    code, _out, err = rd3(*words)
    assert (code, "does not know the classes of digits" in err, "--allow-chance" in err) == (2, True, True)
    assert "test convnet_d1" not in err, "the progress bar is gone"
    assert not list(home.rglob("*mine*"))
    assert rd3(*words, "--allow-chance")[0] == 0


def test_a_role_that_changes_hands_says_from_whom_to_whom(rd3, home, weights):
    words = ("teacher", "import", weights, "--dataset", "digits", "--network", "convnet_d1", "--allow-chance")
    code, out, _err = rd3(*words, "--role", "mine")
    assert code == 0
    first = out.split()[1].rstrip(":")
    assert "pixels normalised with 0.3052/0.3236, the dataset's own" in out
    assert f"role mine of digits: teacher {first} (convnet_d1, " in out and "it is new" in out
    assert "as before" in rd3(*words, "--role", "mine")[1]

    code, out, _err = rd3(*words, "--role", "mine", "--normalised", "imagenet")
    second = out.split()[1].rstrip(":")
    assert "pixels normalised with imagenet (0.485,0.456,0.406/0.229,0.224,0.225)" in out
    assert f"role mine of digits: from teacher {first} (convnet_d1, " in out
    assert f"to teacher {second} (convnet_d1, " in out
    assert "in place of RD3's own, convnet_d1 (trained by RD3; " in rd3(*words)[1]


def test_a_class_order_is_read_from_a_file(rd3, home, weights, tmp_path):
    words = ("teacher", "import", weights, "--dataset", "digits", "--network", "convnet_d1", "--allow-chance")
    (tmp_path / "order.txt").write_text("\n".join("1023456789"))
    plain, ordered = rd3(*words)[1].split()[1], rd3(*words, "--class-order", str(tmp_path / "order.txt"))[1].split()[1]
    assert plain != ordered
    code, _out, err = rd3(*words, "--class-order", str(tmp_path / "none.txt"))
    assert (code, "There is no file" in err) == (2, True)


def test_mistakes_of_options_are_said_before_the_test(rd3, home, weights):
    words = ("teacher", "import", weights, "--dataset", "digits", "--network", "convnet_d1")
    code, _out, err = rd3(*words, "--normalised", "imgnet")
    assert (code, "did you mean 'imagenet'" in err) == (2, True)
    code, _out, err = rd3(*words, "--entry", "model_ema")
    assert (code, "use 'model_state_dict._orig_mod.module'" in err) == (2, True)
