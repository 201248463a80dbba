"""Folding batch norms into convolutions: the same function to rounding, and left alone where it would not be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rd3.models import NETWORKS, build_network, folded
from rd3.recipe import Normalisation
from rd3.seeding import generator

CONSTANTS = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
TIMM = ["timm:resnet18d", "timm:efficientnet_b0", "timm:regnetx_002", "timm:repvgg_a0", "timm:vgg11_bn"]


def _trained(network):
    """The network with norms as training might leave them, in eval mode."""
    stream = generator(0, "norms")
    for norm in _norms(network):
        for tensor, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2.0)):
            tensor.uniform_(low, high, generator=stream)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=stream)
            norm.bias.uniform_(-0.2, 0.2, generator=stream)
    return network.eval()


def _norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _distance(got, expected):
    """Largest difference, as a share of the largest value."""
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", sorted({*NETWORKS.names(), *TIMM} - {"resnet101", "swin_v2_t", "vit_b_16"}))
def test_a_folded_network_answers_as_the_network_does(name):
    network = _trained(build_network(name, 7, 32, CONSTANTS, generator(1, "init")))
    pixels = torch.rand(4, 3, 32, 32, generator=generator(2, "pixels"))
    with torch.no_grad():
        before, after = network(pixels), folded(network)(pixels)
        features = folded(network).features(pixels)
        exact = network.double()(pixels.double())
        also_exact = folded(network)(pixels.double())
    # In float64 the algebra alone is left.
    assert _distance(also_exact, exact) < 1e-11
    # In float32 a folded weight is rounded once, by at most half an epsilon of itself, which moves a sum no more than
    # rounding its products does; later layers carry both errors alike.  So both are about as far from the exact answer.
    assert _distance(after, exact) < 4 * _distance(before, exact) + 8 * torch.finfo(torch.float32).eps
    assert features.shape[0] == 4


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("resnet50", 0),
        ("resnet18_w16", 0),
        ("convnet", 0),
        ("mobilenet_v2", 0),
        ("shufflenet_v2_x0_5", 0),
        ("efficientnet_b0", 0),
        # Of two in each of six blocks and one before the head: the second of a block sees its first convolution, and
        # the very first sees the stem; the other six see a sum.
        ("wrn_16_2", 6),
        ("timm:resnet18d", 0),
        ("timm:efficientnet_b0", 0),
    ],
)
def test_how_many_norms_are_left(name, left):
    network = _trained(build_network(name, 7, 32, CONSTANTS))
    assert len(_norms(network)) > 0
    assert len(_norms(folded(network))) == left


def test_the_network_stays_as_it_was_and_the_copy_is_frozen():
    network = _trained(build_network("resnet18_w16", 7, 32, CONSTANTS)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copy = folded(network)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert (type(copy), copy.head_name) == (type(network), network.head_name)


def test_weights_keep_their_memory_format():
    network = build_network("convnet", 7, 32, CONSTANTS).to(memory_format=torch.channels_last)
    conv = folded(network).network.features[0]
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


class Pieces(nn.Module):
    """Convolutions and norms in ways that only look alike."""

    def __init__(self, way):
        super().__init__()
        self.way, self.conv, self.norm = way, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        out = self.conv(x)
        if self.way == "also seen by another":
            return self.norm(out) + out
        if self.way == "convolution twice":
            return self.norm(out) + self.conv(x + 1)
        if self.way == "norm twice":
            return self.norm(self.norm(out))
        if self.way == "weight read":
            return self.norm(out) * self.conv.weight.mean()
        if self.way == "activation between":
            return self.norm(out.relu())
        if self.way == "not traceable" and x.sum() > 0:
            return self.norm(out)
        return self.norm(out)


class Standardised(nn.Conv2d):
    """Does not use its weight as it is."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize(
    "way",
    ["also seen by another", "convolution twice", "norm twice", "weight read", "activation between", "not traceable"],
)
def test_what_cannot_be_folded_is_left(way):
    network = _trained(Pieces(way))
    pixels = torch.rand(2, 3, 8, 8, generator=generator(0, "pixels"))
    copy = folded(network)
    assert isinstance(copy.norm, nn.BatchNorm2d)
    assert torch.equal(copy(pixels), network(pixels))


def test_only_plain_convolutions_without_hooks_are_folded():
    pixels = torch.rand(2, 3, 8, 8, generator=generator(0, "pixels"))
    other, hooked, batch_mode, plain = (_trained(Pieces("plain")) for _ in range(4))
    other.conv = Standardised(3, 3, 3, padding=1)
    hooked.conv.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    batch_mode.norm.running_mean = batch_mode.norm.running_var = None
    for network in (other, hooked, batch_mode):
        assert torch.equal(folded(network)(pixels), network(pixels))
    assert isinstance(folded(plain).norm, nn.Identity)


def test_a_norm_without_weights_and_a_convolution_without_bias_by_hand():
    network = Pieces("plain").eval()
    network.conv, network.norm = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, affine=False, eps=0.0)
    network.norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    network.norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    conv = folded(network).conv
    assert conv.bias.tolist() == [-0.5, 4.0]
    torch.testing.assert_close(conv.weight, network.conv.weight.detach() * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1))


def test_convolutions_that_share_their_weight_are_folded_each_by_itself():
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    network = nn.Sequential(first, nn.BatchNorm2d(3), second, nn.BatchNorm2d(3)).eval()
    for norm, variance in ((network[1], 4.0), (network[3], 0.25)):
        norm.running_var.fill_(variance)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = folded(network)
    assert [type(module) for module in found] == [nn.Conv2d, nn.Identity] * 2
    torch.testing.assert_close(found(images), network(images))
