"""Bytes against files that were really written: networks that are saved, and the shipped results of CIFAR-10."""

from __future__ import annotations

import pytest
from safetensors.torch import save

from rd3.datasets import dataset_info
from rd3.models import build_network
from rd3.models._matched import matched_layers
from rd3.planning.cost import extent
from rd3.planning.forecast import FIXED, artifact_bytes
from rd3.recipe import Data, SetRecipe, TeacherRecipe

DIGITS = dataset_info("digits")
DATA = Data(name="digits", fingerprint="f")


@pytest.mark.parametrize("network", ["resnet18_w16", "convnet", "mobilenet_v2", "timm:resnet18"])
def test_a_teacher_is_as_large_as_its_file(network: str):
    recipe = TeacherRecipe(
        data=DATA,
        classes=DIGITS.classes,
        network=network,
        resolution=32,
        normalisation=DIGITS.normalisation,
        weights="w",
    )
    built = build_network(network, 10, 32, DIGITS.normalisation)
    written = len(save({name: tensor.contiguous() for name, tensor in built.state_dict().items()}))
    assert artifact_bytes(recipe, DIGITS, {}.__getitem__) == pytest.approx(written, rel=0.03, abs=2 * FIXED)


def test_channels_are_those_of_the_layers_that_statistics_are_of():
    layers = matched_layers(build_network("resnet18_w16", 10, 32, DIGITS.normalisation).network)
    assert extent("resnet18_w16", 10, 32).channels == sum(
        layer.in_channels if hasattr(layer, "in_channels") else layer.num_features for layer in layers.values()
    )


def test_a_set_is_its_pixels_and_a_contact_sheet():
    def made(ipc: int) -> int:
        recipe = SetRecipe(
            method="random", version=1, settings={}, data=DATA, classes=DIGITS.classes, resolution=32, ipc=ipc
        )
        return artifact_bytes(recipe, DIGITS, {}.__getitem__)

    assert made(1) - FIXED == 2 * 10 * 3 * 32 * 32
    assert made(50) - made(40) == 10 * 10 * 3 * 32 * 32
