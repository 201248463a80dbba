"""Networks are asked without leaving a trace in their buffers."""

from __future__ import annotations

import torch
from torch import nn

from rd3.teacher.steadiness import observed


def test_buffers_of_a_layer_that_was_called_before_its_network_are_restored():
    layer = nn.BatchNorm1d(3)
    network = nn.Sequential(layer)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with observed():
        layer(torch.randn(8, 3) + 5)
        network(torch.randn(8, 3) + 5)
    after = dict(network.named_buffers())
    assert all(torch.equal(after[name], before[name]) for name in before)
