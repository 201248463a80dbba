"""Tiny random models, with weights that are not the zeros of their initialisation."""

from __future__ import annotations

import pytest
import torch

from rd3.datasets import DatasetInfo, dataset_info
from rd3.diffusion.families.dit import DiT
from rd3.seeding import generator

SIZES = {"width": 16, "depth": 4, "heads": 2, "patch": 8}


def shaken(network: torch.nn.Module, seed: int = 0) -> None:
    """Add noise to all parameters, so that every layer matters."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.1)


@pytest.fixture
def info() -> DatasetInfo:
    return dataset_info("digits")


@pytest.fixture
def dit(info: DatasetInfo) -> DiT:
    model = DiT.create(SIZES, info, generator(0, "tiny"))
    shaken(model.transformer)
    return model.frozen()
