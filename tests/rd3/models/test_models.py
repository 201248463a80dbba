"""Networks: published sizes and costs, the forms at small resolutions, and what wraps them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from rd3.errors import UnknownName, Unsupported
from rd3.models import (
    NETWORKS,
    Cost,
    NormalisedNetwork,
    build_network,
    forward_cost,
    network_info,
    register_network,
)
from rd3.models.architectures import resnet, shufflenet
from rd3.recipe import Normalisation
from rd3.seeding import generator

CONSTANTS = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def parameter_count(name: str, num_classes: int, resolution: int) -> int:
    with torch.device("meta"):
        network = build_network(name, num_classes, resolution, CONSTANTS)
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "resolution", "published"),
    [
        # torchvision's documentation
        ("resnet18", 1000, 224, 11_689_512),
        ("resnet50", 1000, 224, 25_557_032),
        ("resnet101", 1000, 224, 44_549_160),
        ("mobilenet_v2", 1000, 224, 3_504_872),
        ("efficientnet_b0", 1000, 224, 5_288_548),
        ("swin_v2_t", 1000, 224, 28_351_570),
        ("vit_b_16", 1000, 224, 86_567_656),
        ("shufflenet_v2_x0_5", 1000, 224, 1_366_792),
        ("alexnet", 1000, 224, 61_100_840),
        # the CIFAR networks of RDED, CRD and Dataset Condensation
        ("resnet18", 10, 32, 11_173_962),
        ("wrn_16_2", 100, 32, 703_284),
        ("mobilenet_v2", 100, 32, 812_836),
        ("convnet_in", 10, 32, 320_010),
        ("convnet", 10, 32, 320_010),
        # timm's results table
        ("timm:vit_tiny_patch16_224", 1000, 224, 5_717_416),
    ],
)
def test_published_parameter_counts(name, num_classes, resolution, published):
    assert parameter_count(name, num_classes, resolution) == published


@pytest.mark.parametrize(
    ("name", "channels", "features"),
    [
        ("convnet_d1", [3, 128], 128 * 16 * 16),
        ("convnet_d2", [3, 128, 128], 128 * 8 * 8),
        ("convnet_w32", [3, 32, 32, 32], 32 * 4 * 4),
    ],
)
def test_the_small_convnets_of_edcs_pool_by_hand(name, channels, features):
    """A block has 9 weights for every pair of channels and a bias, and two numbers a channel of its norm."""
    blocks = sum(9 * inputs * outputs + outputs + 2 * outputs for inputs, outputs in pairwise(channels))
    assert parameter_count(name, 10, 32) == blocks + 10 * features + 10


def test_small_shufflenet_is_the_published_one_at_width_one():
    # CRD publishes 1,355,528 for its "ShuffleV2", which is width 1; the half width shares every line of the code.
    network = shufflenet.small_stem(100, 32, width="x1_0")
    assert sum(weight.numel() for weight in network.parameters()) == 1_355_528


@pytest.mark.parametrize(
    ("name", "published_gmac"),
    [
        ("resnet18", 1.814),
        ("resnet50", 4.089),
        ("resnet101", 7.801),
        ("mobilenet_v2", 0.301),
        ("efficientnet_b0", 0.386),
        ("vit_b_16", 17.564),
        ("shufflenet_v2_x0_5", 0.040),
        ("alexnet", 0.714),
    ],
)
def test_published_work_of_a_forward_pass(name, published_gmac):
    assert forward_cost(name, 1000, 224).flops / 2e9 == pytest.approx(published_gmac, abs=6e-4)


def test_work_of_a_convnet_by_hand():
    # Per block: side^2 * 9 * inputs * 128 multiply-adds, plus the linear layer.
    work = 32**2 * 9 * 3 * 128 + 16**2 * 9 * 128 * 128 + 8**2 * 9 * 128 * 128 + 2048 * 10
    assert forward_cost("convnet", 10, 32).flops == 2 * work


def test_traffic_of_a_convnet_by_hand():
    # Per block: the convolution reads its input and writes 128 channels; batch norm and ReLU read and write them, and
    # the pooling reads them and writes a quarter.  Then 2,048 features and ten logits; four bytes each.
    blocks = [(32, 3), (16, 128), (8, 128)]
    values = sum(side**2 * (inputs + 128 + 4 * 128 + 128 + 128 / 4) for side, inputs in blocks) + 2048 + 10
    assert forward_cost("convnet", 10, 32).bytes == 4 * values


def test_what_a_batch_reads_once_is_no_cost_of_an_image():
    # A head of 990 more classes has 760,320 more weights; per image their inputs and outputs alone
    grown = forward_cost("vit_b_16", 1000, 32) - forward_cost("vit_b_16", 10, 32)
    assert grown == Cost(2.0 * 768 * 990, 4.0 * 990)


def test_costs_add_up():
    assert 3 * Cost(1.0, 2.0) + Cost(0.5) == Cost(3.5, 6.0)


@pytest.mark.parametrize("name", sorted(set(NETWORKS.names()) - {"resnet50", "resnet101", "vit_b_16"}))
def test_logits_are_the_head_of_the_features_of_normalised_pixels(name):
    network = build_network(name, 7, 32, CONSTANTS, generator(1, "init")).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=generator(2, "pixels"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONSTANTS.mean, CONSTANTS.std))
    with torch.no_grad():
        features, logits = network.features(pixels), network(pixels)
        assert features.ndim == 2
        assert logits.shape == (2, 7)
        torch.testing.assert_close(network.head(features), logits)
        torch.testing.assert_close(network.network((pixels - mean) / std), logits)
    assert all(name.startswith("network.") for name in network.state_dict())


SEVEN = ["resnet18", "resnet50", "resnet101", "mobilenet_v2", "efficientnet_b0", "swin_v2_t", "vit_b_16"]
"""The students of the paper's Table 3."""


@pytest.mark.parametrize("name", SEVEN)
@pytest.mark.parametrize(("resolution", "classes"), [(32, 100), (64, 200), (224, 1000)])
def test_the_students_of_table_3_take_batches_at_every_resolution(name, resolution, classes):
    with torch.device("meta"), torch.no_grad():
        network = build_network(name, classes, resolution, CONSTANTS).train()
        for batch in (50, 100):
            assert network(torch.empty(batch, 3, resolution, resolution)).shape == (batch, classes)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_network_says_what_it_is_at_every_resolution(name):
    info = network_info(name)
    assert set(info.resolutions) == {32, 64, 224}
    assert all(info.resolutions.values())


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("resolution", [32, 64])
def test_resnets_keep_torchvisions_names_and_see_full_maps(depth, resolution):
    with torch.device("meta"):
        network = resnet.small_stem(10, resolution, depth=depth)
        original = torchvision_models.get_model(f"resnet{depth}", num_classes=10)
        sides = []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            stage.register_forward_hook(lambda _module, _inputs, maps: sides.append(maps.shape[-1]))
        network(torch.empty(2, 3, resolution, resolution))
    assert list(network.state_dict()) == list(original.state_dict())
    assert sides == [resolution, resolution // 2, resolution // 4, resolution // 8]


def test_narrow_resnet_is_torchvisions_with_a_quarter_of_the_channels():
    with torch.device("meta"):
        narrow = resnet.narrow(10, 224, width=16, stem="large").state_dict()
        full = torchvision_models.resnet18(num_classes=10).state_dict()
    assert list(narrow) == list(full)
    for name, value in full.items():
        kept = {3, 7, 1, 10}  # kernel sides, image channels, classes
        quarter = tuple(size if size in kept else size // 4 for size in value.shape)
        assert tuple(narrow[name].shape) == quarter, name


def test_weights_come_from_the_stream_alone():
    before = torch.get_rng_state()
    first, again, other = (
        build_network("convnet", 10, 32, CONSTANTS, generator(seed, "init")).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.features.0.weight"], other["network.features.0.weight"])


def test_instance_norm_is_affine_and_per_image():
    network = build_network("convnet_in", 10, 32, CONSTANTS).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    pixels = torch.rand(4, 3, 32, 32, generator=generator(3, "pixels"))
    maps = network.network.features[0](network.normalise(pixels))
    expected = nn.functional.instance_norm(maps, eps=norms[0].eps)
    torch.testing.assert_close(norms[0](maps), expected)
    assert len(norms) == 3
    assert all(norm.weight.shape == (128,) for norm in norms)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        build_network("resnet81", 10, 32, CONSTANTS)
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        network_info("timm:resnet18x")


def test_a_resolution_without_a_form_is_unsupported():
    with pytest.raises(Unsupported, match="32, 64, 224"):
        build_network("resnet18", 10, 96, CONSTANTS)


def test_timm_networks_take_small_images():
    network = build_network("timm:vit_tiny_patch16_224", 5, 64, CONSTANTS).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert network.network.pos_embed.shape[1] == 1 + (64 // 16) ** 2


def test_a_network_without_a_linear_head_is_unsupported():
    with pytest.raises(Unsupported, match="linear"):
        build_network("timm:test_nfnet", 0, 32, CONSTANTS)
    with pytest.raises(Unsupported, match="Conv2d has no linear layer"):
        _ = NormalisedNetwork(nn.Conv2d(3, 4, 1), CONSTANTS).head


def test_a_registered_builder_is_a_network():
    @register_network("flat", summary="one linear layer", resolutions={32: "on pixels"})
    def flat(num_classes: int, resolution: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * resolution**2, num_classes))

    try:
        assert "flat" in NETWORKS.names()
        assert parameter_count("flat", 4, 32) == 4 * (3 * 32 * 32 + 1)
        assert build_network("flat", 4, 32, CONSTANTS)(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    finally:
        del NETWORKS._things["flat"]


def test_names_and_notes_need_no_torch():
    code = (
        "import sys\n"
        "from rd3.models import NETWORKS, network_info\n"
        "print([network_info(name).resolutions[32] for name in NETWORKS.names()])\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_cost_of_a_network_whose_embedding_is_the_input_of_a_layer():
    """PiT-S has 2.9 GFLOPs, in multiply-adds (Heo et al., ICCV 2021, Table 4)."""
    assert forward_cost("timm:pit_s_224", 1000, 224).flops == pytest.approx(2 * 2.9e9, rel=0.02)


def test_a_network_that_shrinks_images_too_often_is_unsupported():
    with pytest.raises(Unsupported, match="timm:inception_v3 fails on images of 32 pixels: "):
        forward_cost("timm:inception_v3", 10, 32)
    with pytest.raises(Unsupported, match="timm:halonet26t fails on images of 224 pixels: AssertionError"):
        forward_cost("timm:halonet26t", 10, 224)
