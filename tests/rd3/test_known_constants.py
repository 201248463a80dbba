"""Constants by name and as numbers, and the way back to text."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import ResNet18_Weights
from torchvision.transforms.v2 import functional

from rd3.datasets import dataset_info
from rd3.errors import BadValue
from rd3.known_constants import KNOWN, constants, option, spelled
from rd3.recipe import Normalisation

OWN = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_names_are_those_of_torchvision_and_of_the_datasets():
    published = ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert (list(KNOWN["imagenet"].mean), list(KNOWN["imagenet"].std)) == (published.mean, published.std)
    for name in ("cifar10", "cifar100", "tinyimagenet"):
        assert KNOWN[name] == dataset_info(name).normalisation
    assert constants("dataset", OWN) == OWN


@pytest.mark.parametrize(("name", "low", "high"), [("[-1, 1]", -1, 1), ("[0,1]", 0, 1), ("0-255", 0, 255)])
def test_ranges_are_those_of_the_normalised_pixels(name, low, high):
    found = constants(name, OWN)
    ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    normalised = functional.normalize(ends, list(found.mean), list(found.std))
    torch.testing.assert_close(normalised[:, 0, 0, 0], torch.tensor([float(low), float(high)]))


@pytest.mark.parametrize("text", ["0.1,0.2,0.3/0.4,0.5,0.6", "(0.1, 0.2, 0.3) / (0.4, 0.5, 0.6)"])
def test_numbers_are_read(text):
    assert constants(text, KNOWN["half"]) == OWN
    assert constants("0.5/0.25", OWN) == Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("name", KNOWN)
def test_text_leads_back(name):
    assert constants(option(KNOWN[name]), OWN) == KNOWN[name]
    assert name in spelled(KNOWN[name])
    assert constants(option(OWN), KNOWN["none"]) == OWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imgnet", "did you mean 'imagenet'"),
        ("0.5", "There are no constants"),
        ("0.5/0", "standard deviation of 0"),
        ("127.5/127.5", "mean of 127.5.* divide by 255: 0.5/0.5"),
        ("0/255", "standard deviation of 255.* divide by 255: 0/1"),
        ("0.5,0.5/0.5", "Cannot read"),
        ("nan/1", "Cannot read"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(BadValue, match=message):
        constants(text, OWN)


def test_constants_of_bytes_are_refused_with_those_of_the_unit_range():
    with pytest.raises(BadValue, match="divide by 255") as caught:
        constants("127.5/51", OWN)
    assert constants(caught.value.fix.removeprefix("divide by 255: "), OWN) == constants("0.5/0.2", OWN)
