"""Weights in parts, put together as torch does; buffers that are no weights; weights that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from rd3 import teacher
from rd3.errors import BadValue, DataCorrupt
from rd3.known_constants import KNOWN
from rd3.models import build_network
from rd3.teacher.fit import check_fit
from rd3.teacher.folded import folded
from rd3.teacher.state_dicts import WeightsFile
from tests.rd3.conftest import OWN

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv1(pixels).mean((2, 3)))


def each_layer(change):
    def applied(network):
        for layer in (network.conv1, network.fc):
            change(layer)

    return applied


def pruned(network):
    prune.l1_unstructured(network.conv1, "weight", 0.5)
    prune.random_structured(network.fc, "weight", 0.5, dim=1)


CHANGES = {
    "pruned": (pruned, "2 layers are multiplied with the file's pruning masks, which are zero for 50.0 %"),
    "weight norm": (each_layer(weight_norm), "weights of 2 layers are computed"),
    "weight norm over all": (each_layer(lambda layer: weight_norm(layer, dim=None)), "2 layers are computed"),
    "weight norm by input": (each_layer(lambda layer: weight_norm(layer, dim=1)), "2 layers are computed"),
    "weight norm, new": (each_layer(parametrizations.weight_norm), "2 layers are computed"),
    "spectral norm": (each_layer(spectral_norm), "2 layers are computed"),
    "spectral norm, new": (each_layer(parametrizations.spectral_norm), "2 layers are computed"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_parts_predict_what_the_network_predicts_that_torch_puts_together(case, tmp_path):
    torch.manual_seed(0)
    change, said = CHANGES[case]
    network, pixels = Small(), torch.rand(5, 3, 8, 8)
    change(network)
    network(pixels)  # computes what is estimated in training
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    expected = network.eval()(pixels).detach()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "c"
    )
    plain = Small()
    found = WeightsFile.open(tmp_path / "c").weights(plain.state_dict())
    plain.load_state_dict(found.tensors)
    torch.testing.assert_close(plain.eval()(pixels), expected)
    assert said in " ".join(found.said)


def test_other_parametrizations_are_refused_and_the_fix_works():
    network = Small()
    nn.utils.parametrizations.orthogonal(network.fc)
    with pytest.raises(BadValue, match=r"fc\.weight is a parametrization that RD3 does not compute") as caught:
        folded(network.state_dict())
    assert "remove_parametrizations(layer, 'weight')" in caught.value.fix
    expected = network.fc.weight.detach().clone()
    nn.utils.parametrize.remove_parametrizations(network.fc, "weight")
    assert torch.equal(folded(network.state_dict()).tensors["fc.weight"], expected)


def test_weights_of_similar_names_are_left_alone():
    plain = {
        "a_mask": torch.ones(3),
        "b_g": torch.ones(2),
        "c_orig": torch.ones(2),
        "d_g": torch.ones(3),
        "d_v": torch.ones(2),
        "original0": torch.ones(2),
    }
    assert folded(plain).tensors.keys() == plain.keys() and folded(plain).said == ()


def test_counters_of_thop_are_ignored_and_said(colours, tmp_path):
    data = colours()
    counted = {"total_ops": torch.zeros(1, dtype=torch.float64), "fc.total_params": torch.tensor([16.0])}
    torch.save(data.weights(OWN) | counted, tmp_path / "w.pt")
    said = []
    _recipe, figures = teacher.import_weights(
        tmp_path / "w.pt", dataset=data, network="nearest", out=tmp_path / "out", notice=said.append
    )
    assert figures["top1_pct"] == data.top1_pct("test", OWN, OWN)
    assert said == ["2 counters of operations (total_ops, total_params) are not weights and are ignored."]


def refused(tensors, network="resnet18_w16", classes=4, colours=None):
    expected = build_network(network, classes, 32, KNOWN["none"]).network.state_dict()
    checkpoint = WeightsFile("w.pt", tensors)
    found = checkpoint.weights(expected).tensors
    with pytest.raises(BadValue) as caught:
        check_fit(found, expected, "fc.weight", checkpoint, network, colours().info)
    return str(caught.value), caught.value.fix


def small_resnet():
    return build_network("resnet18_w16", 4, 32, KNOWN["none"]).network


def test_further_tensors_are_named_and_the_fix_works(colours):
    state = small_resnet().state_dict()
    more = {"layer1.0.se.fc1.weight": torch.rand(4, 4), "aux.weight": torch.rand(2, 2)}
    message, fix = refused(state | more, colours=colours)
    assert "has all tensors of resnet18_w16 and 2 more: aux.weight, layer1.0.se.fc1.weight" in message
    assert fix.startswith("save it without these") and "rename" not in message
    expected = small_resnet().state_dict()
    check_fit(state, expected, "fc.weight", WeightsFile("w.pt", state), "resnet18_w16", colours().info)


def test_a_network_for_grey_images_and_its_fix(colours):
    network = small_resnet().eval()
    state = dict(network.state_dict())
    state["conv1.weight"] = state["conv1.weight"][:, :1].clone()
    message, fix = refused(state, colours=colours)
    assert "is of a network for grey images: conv1.weight takes 1 channel" in message
    pixels = torch.rand(2, 1, 32, 32)
    grey = small_resnet().eval()
    grey.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    grey.load_state_dict(state)
    exec(fix[fix.index("state[") : fix.rindex(",")], {"state": state})
    network.load_state_dict(state)
    torch.testing.assert_close(network(pixels.expand(-1, 3, -1, -1)), grey(pixels))


def test_names_of_other_libraries_are_said(colours):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    message, fix = refused(transformers.ResNetForImageClassification(config).state_dict(), colours=colours)
    assert "has the names of a ResNet of Hugging Face's transformers (classifier.1.bias, " in message
    assert "torchvision's names" in fix


def test_the_resnets_of_timm_have_torchvisions_names():
    timm = pytest.importorskip("timm")
    expected = build_network("resnet18", 7, 224, KNOWN["imagenet"]).network.state_dict()
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    found = WeightsFile("pytorch_model.bin", state).weights(expected).tensors
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin.index.json", "is the index of a checkpoint in several files"),
        ("model-00001-of-00003.safetensors", "is one of 3 parts of a checkpoint in several files"),
    ],
)
def test_checkpoints_in_several_files_are_one_sentence(name, what, tmp_path):
    (tmp_path / name).write_text('{"weight_map": {}}')
    with pytest.raises(BadValue, match=what):
        WeightsFile.open(tmp_path / name)


def test_one_part_of_one_is_the_whole(tmp_path):
    torch.save(Small().state_dict(), tmp_path / "pytorch_model-00001-of-00001.bin")
    assert "fc.bias" in WeightsFile.open(tmp_path / "pytorch_model-00001-of-00001.bin").weights(["fc.bias"]).tensors


def test_averages_without_names_are_said():
    network = Small()
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": list(network.parameters()), "collected_params": None}
    with pytest.raises(DataCorrupt, match=r"holds 4 tensors without names in ema\.shadow_params") as caught:
        WeightsFile("w.pt", {"ema": ema, "epoch": 3}).weights(network.state_dict())
    assert "ema.copy_to(network.parameters())" in caught.value.fix
    found = WeightsFile("w.pt", {"ema": ema, "model": network.state_dict()}).weights(network.state_dict())
    assert found.tensors.keys() == network.state_dict().keys()
    assert found.said == ("The tensors in ema.shadow_params have no names and are not read.",)
