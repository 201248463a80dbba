"""What must hold on a CUDA device: the CPU's views, finite losses, the same numbers twice, work that is taken up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rd3 import teacher
from rd3.augment import resized_crop, to_unit
from rd3.device import usable_device
from rd3.errors import BadValue
from rd3.evaluation.posteval import evaluate
from rd3.evaluation.views import Batch, views
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, TeacherRecipe, TeacherTraining
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
TOY = ToyDataset(per_class=12)


def pixels(count: int = 50, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), generator=generator(0, "pixels"), dtype=torch.uint8)


MOVING = ["pad_crop", {"patch_shuffle": {"grid": 2}}, "flip", "cutmix"]


def batches(device: str, ahead: int) -> list[Batch]:
    """Views whose pixels are only moved, of two epochs."""
    fields = {"epochs": 2, "batch_size": 12, "augmentation": MOVING}
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=fields)
    labels = torch.arange(50, device=device) % 10
    return [batch for some in views(pixels().to(device), labels, protocol, 0, ahead) for batch in some.batches]


@pytest.mark.parametrize("ahead", [1, 7])
def test_views_that_move_pixels_are_those_of_the_cpu_to_the_bit(ahead):
    for one, other in zip(batches(DEVICE, ahead), batches("cpu", 1), strict=True):
        assert torch.equal(one.images.cpu(), other.images) and one.targets.lam == other.targets.lam
        assert torch.equal(one.targets.labels_mixed.cpu(), other.targets.labels_mixed)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_resized_crop_is_that_of_the_cpu_up_to_rounding(antialias):
    """Two fp32 products with weights that sum to one: each rounds by at most a few units in the last place of 1."""
    crop = [
        resized_crop(to_unit(images), 32, 0.25, generator(2, "crop"), antialias=antialias).cpu()
        for images in (pixels(), pixels().to(DEVICE))
    ]
    torch.testing.assert_close(crop[1], crop[0], rtol=0, atol=32 * torch.finfo(torch.float32).eps)


def score(**options):
    """Two epochs on real images of the toy dataset under its teacher."""
    labels = torch.from_numpy(TOY.labels("train").copy())
    images = TOY.images("train", range(len(labels)))
    return evaluate(
        images, labels, TOY, toy_teacher(TOY).to(DEVICE), student="resnet18_w16", device=DEVICE,
        **{"epochs": 2, "batch_size": 10, "allow_chance": True, **options},
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_post_evaluation_ends_with_a_finite_loss_and_repeats_to_the_bit(precision):
    first, second = (score(precision=precision) for _run in range(2))
    assert math.isfinite(first.final_loss) and first.epochs_run == 2
    assert first.curve == second.curve
    assert first.per_class_correct == second.per_class_correct


def a_set(folder: Path, seed: int) -> SyntheticSet:
    recipe = trial_recipe("sre2l", TOY, 1, set_seed=seed)
    synthesize(recipe, TOY, (toy_teacher(TOY).to(DEVICE),), folder, device=DEVICE)
    return SyntheticSet.open(folder)


def test_a_recovered_set_repeats_to_the_bit_and_follows_its_seed(tmp_path):
    first, second, other = (a_set(tmp_path / str(run), seed) for run, seed in enumerate((0, 0, 1)))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


class Cut(Exception):
    """The training is interrupted here."""


def test_an_interrupted_teacher_is_taken_up_to_the_bit(tmp_path):
    training = TeacherTraining(epochs=3, batch_size=12, lr=0.02, momentum=0.9, weight_decay=5e-4, crop="pad", flip=True)
    recipe = TeacherRecipe(
        data=Data(name="toy", fingerprint=TOY.fingerprint), classes=TOY.info.classes, network="resnet18_w16",
        resolution=32, normalisation=TOY.info.normalisation, training=training, precision="fp32", seed=0,
    )  # fmt: skip

    def cut(fraction: float, _note: str) -> None:
        if fraction > 0.5:
            raise Cut

    straight = teacher.train(recipe, TOY, tmp_path / "straight", device=DEVICE)
    with pytest.raises(Cut):
        teacher.train(recipe, TOY, tmp_path / "cut", device=DEVICE, progress=cut)
    taken_up = teacher.train(recipe, TOY, tmp_path / "cut", device=DEVICE)
    assert taken_up["final_loss"] == straight["final_loss"]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("straight", "cut")]
    assert weights[0] == weights[1]


def test_a_device_that_is_not_there_is_refused():
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BadValue, match=f"Device '{beyond}' is not available"):
        usable_device(beyond)
