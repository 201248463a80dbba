"""Teachers that answer ahead of the students: to the bit what they answer batch by batch."""

from __future__ import annotations

import pytest
import torch

from rd3.evaluation import packing, teaching
from rd3.models import build_network
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation
from rd3.seeding import generator

CPU = torch.device("cpu")
UNIT = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
IMAGES = torch.randint(256, (80, 3, 32, 32), generator=generator(0, "pixels"), dtype=torch.uint8)


def evaluation(**fields) -> EvaluationRecipe:
    protocol = resolve_protocol(
        "rd3", factor=1, same_network=True, set_size=80, overrides={"epochs": 14, "batch_size": 16} | fields
    )
    return EvaluationRecipe(
        set="s" * 64, protocol=protocol, student="resnet18", student_seed=0, data=Data(name="d", fingerprint="f"),
        classes="c", resolution=32, normalisation=UNIT,
    )  # fmt: skip


@pytest.mark.parametrize("network", ["resnet18_w16", "convnet_w32"])
def test_how_many_images_are_answered_at_once_changes_no_bit(network, monkeypatch):
    """1 and more batches, up to more than a thousand images; fp32 on one device."""
    teacher = teaching.frozen(build_network(network, 10, 32, UNIT, generator(0, "init")), "eval", "fp32", CPU)
    found = []
    for ahead in (1, 256, 1024):
        monkeypatch.setitem(teaching.AHEAD, "cpu", ahead)
        labelled = teaching.LabelledViews(IMAGES, torch.arange(80) % 10, [teacher], evaluation(), "fp32")
        found.append([answered.with_labels_of(evaluation().protocol).targets.teacher_logits for answered in labelled])
    first, *others = found
    assert len(first) == 14 * 5
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_frozen_copy_answers_as_the_teacher_does():
    """Folding rounds the filters once more: by at most an epsilon of fp32 a layer, of logits of size one."""
    network = build_network("resnet18_w16", 10, 32, UNIT, generator(0, "init")).eval()
    copy = teaching.frozen(network, "eval", "fp32", CPU)
    pixels = IMAGES[:16] / 255
    with torch.no_grad():
        expected = network(pixels)
        scale = float(expected.abs().max())
        torch.testing.assert_close(copy(pixels), expected, rtol=0, atol=200 * torch.finfo(torch.float32).eps * scale)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copy.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("changed", "equal"),
    [
        ({"zeta": 2.0}, True), ({"temperature": 4.0}, True), ({"loss": "mse_gt"}, True), ({"lr": 0.1}, True),
        ({"epochs": 15}, False), ({"batch_size": 8}, False), ({"precision": "fp32"}, False),
        ({"teacher_mode": "batch"}, False), ({"augmentation": ["flip"]}, False),
    ],
)  # fmt: skip
def test_views_are_equal_where_pixels_and_answers_are(changed, equal):
    assert (packing.Views.of(evaluation()) == packing.Views.of(evaluation(**changed))) is equal
    assert (packing.Views.of(evaluation()).key == packing.Views.of(evaluation(**changed)).key) is equal
