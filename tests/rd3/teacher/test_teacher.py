"""Training a teacher, resuming it, keeping it, and the checks on the way back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from rd3 import device, teacher
from rd3.datasets import Dataset, DatasetInfo, Split
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing, Diverged
from rd3.models import build_network
from rd3.recipe import Data, Normalisation, TeacherRecipe, TeacherTraining
from rd3.seeding import generator
from rd3.teacher.training import learning_rate, pad_crop

CONSTANTS = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Stripes(Dataset):
    """Three classes that anybody can tell apart: noise that is brighter in the red, green or blue plane."""

    def __init__(self, class_ids: tuple[str, ...] = ("red", "green", "blue"), name: str = "stripes"):
        self.info = DatasetInfo(
            name=name, source="made up", class_ids=class_ids, class_names=class_ids, resolution=32, test_resize=32,
            factor=1, normalisation=CONSTANTS, train_count=36, test_count=30, train_per_class=12,
        )  # fmt: skip
        self.sizes = {"train": 36, "fit": 24, "validation": 12, "test": 30}

    @property
    def fingerprint(self) -> str:
        return "f" * 64

    def labels(self, split: Split) -> np.ndarray:
        return np.arange(self.sizes[split], dtype=np.int64) % 3

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.original(split, index) for index in indices])

    def original(self, split: Split, index: int) -> torch.Tensor:
        pixels = torch.randint(120, (3, 32, 32), generator=generator(0, split, index), dtype=torch.uint8)
        pixels[index % 3] += 60
        return pixels


@pytest.fixture
def dataset() -> Stripes:
    return Stripes()


def a_recipe(precision: str = "fp32", network: str = "convnet", **changes: object) -> TeacherRecipe:
    settings = {"epochs": 3, "batch_size": 10, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4, "crop": "pad"}
    return TeacherRecipe(
        data=Data(name="stripes", fingerprint="f" * 64),
        classes=Stripes().info.classes,
        network=network,
        resolution=32,
        normalisation=CONSTANTS,
        training=TeacherTraining.model_validate(settings | changes),
        precision=precision,
        seed=3,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``a_recipe()``; copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    teacher.train(a_recipe(), Stripes(), folder)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


class Stop(Exception):
    pass


@pytest.mark.parametrize(("network", "precision"), [("convnet", "fp32"), ("resnet18_w16", "bf16"), ("alexnet", "fp32")])
def test_an_interrupted_training_ends_as_an_undisturbed_one(dataset, tmp_path, network, precision):
    recipe = a_recipe(precision, network, lr=0.005)
    whole = teacher.train(recipe, dataset, tmp_path / "whole")
    fractions = []

    def at_the_end_of_an_epoch(fraction: float, note: str) -> None:
        fractions.extend([fraction] if "loss" in note else [])

    def stop_after_first(fraction: float, note: str) -> None:
        at_the_end_of_an_epoch(fraction, note)
        if fractions:
            raise Stop

    with pytest.raises(Stop):
        teacher.train(recipe, dataset, tmp_path / "parts", progress=stop_after_first)
    assert (tmp_path / "parts" / "checkpoint.safetensors").is_file()
    parts = teacher.train(recipe, dataset, tmp_path / "parts", progress=at_the_end_of_an_epoch)

    assert fractions[1] > 1.5 * fractions[0]  # the first epoch was not run again
    assert fractions == sorted(fractions)
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {name: whole[name] for name in ("correct", "final_loss")} == {
        name: parts[name] for name in ("correct", "final_loss")
    }
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_flipped(content: bytes) -> bytes:
    middle = 3 * len(content) // 4
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(("damage", "said"), [(cut, "cannot be read"), (one_bit_flipped, "is damaged")])
def test_a_damaged_checkpoint_is_reported_and_training_restarts(damage, said, dataset, tmp_path):
    recipe = a_recipe("fp32", "convnet", lr=0.005)
    whole = teacher.train(recipe, dataset, tmp_path / "whole")

    def stop(fraction: float, note: str) -> None:
        if "loss" in note:
            raise Stop

    with pytest.raises(Stop):
        teacher.train(recipe, dataset, tmp_path / "cut", progress=stop)
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    notes = []
    again = teacher.train(recipe, dataset, tmp_path / "cut", progress=lambda fraction, note: notes.append(note))
    assert any(note.startswith(f"restarting: checkpoint.safetensors {said}") for note in notes)
    assert {name: whole[name] for name in ("correct", "final_loss")} == {
        name: again[name] for name in ("correct", "final_loss")
    }


def test_a_checkpoint_of_another_recipe_is_not_taken_up(dataset, tmp_path):
    def stop(fraction: float, note: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        teacher.train(a_recipe(lr=0.01), dataset, tmp_path, progress=stop)
    notes = []
    teacher.train(a_recipe(epochs=1), dataset, tmp_path, progress=lambda fraction, note: notes.append(note))
    assert notes[0].startswith("epoch 1/1")


def test_a_checkpoint_of_another_precision_is_begun_anew(dataset, tmp_path, monkeypatch):
    """A training that moves to a machine without bf16, or back."""
    recipe, notes = a_recipe("auto"), []

    def stop(fraction: float, note: str) -> None:
        raise Stop

    monkeypatch.setattr(device, "bf16_in_hardware", lambda _device: True)
    with pytest.raises(Stop):
        teacher.train(recipe, dataset, tmp_path, progress=stop)
    monkeypatch.setattr(device, "bf16_in_hardware", lambda _device: False)
    result = teacher.train(recipe, dataset, tmp_path, progress=lambda fraction, note: notes.append(note))
    assert notes[0] == "restarting at fp32: the checkpoint is from training at bf16"
    assert notes[1].startswith("epoch 1/3") and result["ran_precision"] == "fp32"
    manifest = teacher.TeacherManifest.read(tmp_path)
    assert (manifest.ran_precision, manifest.test_precision, manifest.recipe["precision"]) == ("fp32", "fp32", "auto")
    teacher.train(a_recipe("fp32"), dataset, tmp_path / "asked for")
    one, other = (load_file(folder / "weights.safetensors") for folder in (tmp_path, tmp_path / "asked for"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_epoch_is_sgd_with_nesterov_momentum(dataset, tmp_path):
    """Against the update rule written out: Sutskever's form as torch defines it, weight decay in the gradient."""
    recipe = a_recipe(crop="none", flip=False, epochs=1, batch_size=12, label_smoothing=0.1)
    teacher.train(recipe, dataset, tmp_path)

    network = build_network("convnet", 3, 32, CONSTANTS, generator(3, "init")).train()
    momenta = [torch.zeros_like(weight) for weight in network.parameters()]
    order = torch.randperm(36, generator=generator(3, "order", 0)).tolist()
    for step in range(3):
        batch = order[12 * step : 12 * step + 12]
        logs = F.log_softmax(network(dataset.images("train", batch) / 255), dim=1)
        targets = torch.full((12, 3), 0.1 / 3)
        targets[range(12), [index % 3 for index in batch]] += 0.9
        loss = -(targets * logs).sum(dim=1).mean()
        rate = 0.02 * (1 + np.cos(np.pi * step / 3)) / 2
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for weight, momentum, gradient in zip(network.parameters(), momenta, gradients, strict=True):
                gradient = gradient + 5e-4 * weight
                momentum.mul_(0.9).add_(gradient)
                weight -= rate * (gradient + 0.9 * momentum)
    made = load_file(tmp_path / "weights.safetensors")
    for name, value in network.network.state_dict().items():
        torch.testing.assert_close(made[name], value, rtol=1e-3, atol=1e-5)


def test_learning_rate_climbs_and_then_follows_half_a_cosine():
    training = a_recipe(epochs=10, lr=0.4, warmup_epochs=2).training
    rates = [learning_rate(training, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[30] == pytest.approx(0.2)
    assert rates[49] == pytest.approx(0.2 * (1 + np.cos(np.pi * 39 / 40)))
    plain = a_recipe(epochs=4, lr=1).training
    assert [learning_rate(plain, step, 1) for step in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


@pytest.mark.parametrize("zeta", [0.0, 0.2])
def test_a_cosine_that_ends_before_the_warmup_is_refused(zeta):
    with pytest.raises(ValidationError):
        a_recipe(epochs=10, lr=0.4, warmup_epochs=2, zeta=zeta)
    assert learning_rate(a_recipe(epochs=2, lr=0.4, warmup_epochs=2).training, 3, 2) == pytest.approx(0.4)


def test_pad_crop_is_a_cut_of_each_padded_image():
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator(1, "pixels"))
    cropped = pad_crop(images, 2, generator(1, "crop"))
    places = set()
    for image, crop in zip(images, cropped, strict=True):
        wide = torch.zeros(3, 12, 12, dtype=torch.uint8)
        wide[:, 2:10, 2:10] = image
        fits = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(crop, wide[:, top : top + 8, left : left + 8])
        ]
        assert len(fits) == 1
        places.add(fits[0])
    assert {top for top, _left in places} == {left for _top, left in places} == set(range(5))


def test_a_teacher_learns_and_says_what_it_can(trained, dataset):
    manifest = teacher.TeacherManifest.read(trained)
    assert manifest.key == a_recipe().key
    assert manifest.test_top1_pct > 90
    assert manifest.test_count == 30
    assert manifest.verification.count == 12
    curve = parquet.read_table(trained / "curve.parquet").to_pylist()
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert curve == manifest.curve
    loaded = teacher.load(trained, a_recipe(), dataset)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    with torch.no_grad():
        right = [int(loaded(dataset.original("test", index)[None] / 255).argmax()) == index % 3 for index in range(30)]
    assert sum(right) == manifest.test_correct
    assert teacher.verify(trained, a_recipe(), dataset)["correct"] == manifest.verification.correct


def test_training_on_fit_leaves_the_validation_part_out(dataset, tmp_path):
    recipe = a_recipe(epochs=1, batch_size=8)
    asked = []
    dataset.original = lambda split, index, real=dataset.original: asked.append((split, index)) or real(split, index)
    teacher.train(
        recipe.model_copy(update={"data": Data(name="stripes", fingerprint="f" * 64, split="fit")}), dataset, tmp_path
    )
    assert asked[:24] != []
    assert {split for split, _index in asked} == {"fit", "validation"}, "its uses are not to know the test split"
    assert sorted(index for split, index in asked if split == "fit") == list(range(24))


def test_resized_crops_train_too(dataset, tmp_path):
    result = teacher.train(a_recipe(crop="resized", warmup_epochs=1, network="resnet18_w16"), dataset, tmp_path)
    assert np.isfinite(result["final_loss"])


def test_a_loss_that_is_not_finite_is_named_with_its_step(dataset, tmp_path):
    with pytest.raises(Diverged, match=r"epoch 1 of 3, step [2-4] of 4") as caught:
        teacher.train(a_recipe(lr=1e30), dataset, tmp_path)
    assert caught.value.status == "diverged"
    assert not (tmp_path / "manifest.json").exists()


def test_training_refuses_a_dataset_of_another_class_list(tmp_path):
    with pytest.raises(ClassOrderError):
        teacher.train(a_recipe(), Stripes(("green", "red", "blue")), tmp_path)


def test_altered_weights_are_refused(copied, dataset):
    weights = load_file(copied / "weights.safetensors")
    weights["classifier.bias"] += 1e-3
    save_file(weights, copied / "weights.safetensors")
    with pytest.raises(DataCorrupt, match="sha256"):
        teacher.load(copied, a_recipe(), dataset)


def test_truncated_weights_are_refused(copied, dataset):
    data = (copied / "weights.safetensors").read_bytes()
    (copied / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataCorrupt, match="sha256"):
        teacher.load(copied, a_recipe(), dataset)


def test_a_recount_that_is_off_is_refused(copied, dataset):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["verification"]["correct"] -= 1  # of twelve images: 8 points
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataCorrupt, match="its manifest says"):
        teacher.load(copied, a_recipe(), dataset)


def test_a_teacher_of_another_dataset_is_refused(copied, dataset):
    other = Stripes(("cat", "dog", "cow"), "pets")
    recipe = a_recipe().model_copy(update={"classes": other.info.classes, "data": Data(name="pets", fingerprint="0")})
    with pytest.raises(ClassOrderError, match="The teacher in"):
        teacher.load(copied, recipe, other)
    with pytest.raises(ClassOrderError, match="Dataset stripes"):
        teacher.load(copied, a_recipe(), Stripes(("blue", "green", "red")))


def test_another_teacher_of_the_same_dataset_is_refused(copied, dataset):
    with pytest.raises(DataCorrupt, match="expected teacher wrn_16_2 stripes at 32 pixels"):
        teacher.load(copied, a_recipe(network="wrn_16_2"), dataset)


def test_a_folder_without_a_teacher_and_a_broken_manifest(copied, dataset, tmp_path):
    with pytest.raises(DataMissing, match="manifest"):
        teacher.load(tmp_path, a_recipe(), dataset)
    (copied / "manifest.json").write_text('{"key": 3}')
    with pytest.raises(DataCorrupt, match="not a teacher manifest: key"):
        teacher.load(copied, a_recipe(), dataset)


def test_a_recipe_without_training_cannot_be_trained(dataset, tmp_path):
    recipe = a_recipe().model_copy(update={"training": None, "weights": "0" * 64})
    with pytest.raises(BadValue, match="cannot be trained"):
        teacher.train(recipe, dataset, tmp_path)


def test_progress_is_reported_within_long_epochs(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("rd3.teacher.training.REPORT_EVERY_S", 0.0)
    reports: list[tuple[float, str]] = []
    recipe = a_recipe(epochs=2)
    teacher.train(recipe, dataset, tmp_path, progress=lambda fraction, note: reports.append((fraction, note)))
    fractions = [fraction for fraction, _note in reports]
    batches = math.ceil(len(dataset.labels("train")) / recipe.training.batch_size)
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert [note for _fraction, note in reports].count("epoch 2/2") == batches > 1
