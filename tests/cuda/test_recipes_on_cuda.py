"""Every method, and every kind of recipe, on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from rd3 import perform
from rd3.datasets import Roots, open_dataset
from rd3.device import usable_device
from rd3.methods import METHODS
from rd3.planning import calibration
from rd3.protocol import resolve_protocol
from rd3.recipe import (
    BackboneRecipe,
    Data,
    EvaluationRecipe,
    Recipe,
    RobustnessRecipe,
    SetRecipe,
    TeacherRecipe,
    TeacherTraining,
)
from rd3.store import Entry, FolderStore
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipes, trial_set

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
TOY = ToyDataset(per_class=12)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_and_its_parents(method, tmp_path):
    recipes = trial_recipes(method, TOY, 1)
    if any(isinstance(recipe, BackboneRecipe) for recipe in recipes):
        pytest.importorskip("diffusers")
    teachers = [toy_teacher(TOY, number).to(DEVICE) for number in range(len(recipes[-1].teachers))]
    trial_set(recipes, TOY, teachers, tmp_path, tmp_path / "set", device=DEVICE)
    assert SyntheticSet.open(tmp_path / "set").images.shape == (3, 3, 32, 32)


class Chain:
    """Teachers of one epoch and ten random digits, in a store; recipes of evaluations with them."""

    def __init__(self, folder):
        self.folder, self.roots, self.store = folder, Roots(None, folder / "home"), FolderStore(folder / "store")
        dataset = open_dataset("digits", self.roots)
        self.about = dict(
            data=Data(name="digits", fingerprint=dataset.fingerprint), classes=dataset.info.classes,
            resolution=dataset.info.resolution,
        )  # fmt: skip
        self.normalisation = dataset.info.normalisation
        self.teachers = [self.teacher(network) for network in ("resnet18_w16", "convnet_w32")]
        self.set = SetRecipe(method="random", version=1, settings={}, ipc=1, set_seed=0, **self.about)
        for recipe in (*self.teachers, self.set):
            self.run(recipe)

    def teacher(self, network: str) -> TeacherRecipe:
        training = TeacherTraining(
            epochs=1, batch_size=256, lr=0.05, momentum=0.9, weight_decay=0, crop="none", flip=False
        )
        return TeacherRecipe(
            network=network, normalisation=self.normalisation, training=training, precision="auto", seed=0, **self.about
        )

    def evaluation(self, *, student: str = "convnet_w32", teachers: int = 1, **fields) -> EvaluationRecipe:
        same, fields = student == "resnet18_w16", {"epochs": 2, **fields}
        protocol = resolve_protocol("rd3", factor=1, same_network=same, set_size=10, overrides=fields)
        keys = tuple(one.key for one in self.teachers[:teachers]) if protocol.labels == "soft" else ()
        return EvaluationRecipe(
            set=self.set.key, teachers=keys, protocol=protocol, student=student, student_seed=0,
            normalisation=self.normalisation, **self.about,
        )  # fmt: skip

    def run(self, recipe: Recipe, **options) -> Entry:
        if known := self.store.find(recipe.kind, recipe.key):
            return known
        out = self.folder / "out" / recipe.key
        out.mkdir(parents=True, exist_ok=True)
        entry = perform.perform(recipe, self.store, self.roots, out, device=DEVICE, **options)
        return self.store.put(entry, out / "result")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture
def chain(gpu, folder):
    """Kept by the folder: its recipes run once."""
    return Chain(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"teachers": 2},
        {"soft_labels": "stored", "label_top_k": 2},
        {"labels": "hard", "loss": "ce"},
        {"loss": "lskd", "teacher_mode": "batch"},
        {"augmentation": ["rand_augment", "colour_jitter", "lighting", "resized_crop", "cutmix"]},
        {"augmentation": ["flip", "patch_shuffle", "mixup"], "ema": 0.9, "test_resize": 36},
    ],
    ids=lambda fields: ", ".join(map(str, fields.values())),
)
def test_an_evaluation(fields, chain):
    result = chain.run(chain.evaluation(**fields)).result
    assert result["epochs_run"] == 2 and result["tested"] == 340


def test_the_robustness_of_a_kept_student(chain):
    evaluation = chain.evaluation(student="resnet18_w16")
    chain.run(evaluation, keep_student=True)
    result = chain.run(RobustnessRecipe.of(evaluation, ("contrast", "gaussian_noise"))).result
    assert result["tested"] == 340 and 0 <= result["corrupted_top1_pct"] <= 100


def test_stored_labels_that_are_exported(chain, tmp_path):
    evaluation = chain.evaluation(soft_labels="stored")
    assert perform.export_labels(evaluation, chain.store, chain.roots, tmp_path / "labels", device=DEVICE) == 400


def test_a_calibration(monkeypatch):
    monkeypatch.setattr(calibration, "_CASES", calibration._CASES[:2])
    monkeypatch.setattr(calibration, "_GPU_CASES", ())
    monkeypatch.setattr(calibration, "_STEPS", {"cuda": 2})
    measured = calibration.calibrate(DEVICE, seconds=2)
    assert (measured.kind, measured.device) == ("cuda", torch.cuda.get_device_name(usable_device(DEVICE)))
