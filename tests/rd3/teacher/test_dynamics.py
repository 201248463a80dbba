"""A recorded training: what it records, that it is the teacher's training, and that it resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from rd3 import teacher
from rd3.datasets import Roots, open_dataset
from rd3.errors import DataCorrupt
from rd3.perform import perform
from rd3.recipe import Data, TeacherRecipe, TeacherTraining, TrainingDynamicsRecipe, from_json, to_json
from rd3.seeding import generator
from rd3.store import FolderStore
from rd3.teacher import dynamics
from rd3.testing import ToyDataset

TOY = ToyDataset(per_class=11)  # 33 images: with batches of 8 the last one of each epoch is left out
COMMON = {
    "data": Data(name="toy", fingerprint=TOY.fingerprint),
    "classes": TOY.info.classes,
    "network": "convnet",
    "resolution": 32,
    "normalisation": TOY.info.normalisation,
    "training": TeacherTraining(epochs=3, batch_size=8, lr=0.02, momentum=0.9, weight_decay=0.0, crop="pad"),
    "precision": "fp32",
    "seed": 5,
}
RECIPE = TrainingDynamicsRecipe(**COMMON)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    dynamics.record(RECIPE, TOY, folder)
    return folder


def test_measures_of_logits_number_by_number() -> None:
    logits = 3 * torch.randn((50, 4), generator=generator(0, "logits"))
    labels = torch.randint(4, (50,), generator=generator(0, "labels"))
    margins, errors = dynamics.margins_and_errors(logits, labels)
    for row, label, margin, error in zip(logits.tolist(), labels.tolist(), margins, errors, strict=True):
        others = [value for place, value in enumerate(row) if place != label]
        assert float(margin) == pytest.approx(row[label] - max(others), abs=1e-5)
        total = sum(math.exp(value) for value in row)
        squares = [(math.exp(value) / total - (place == label)) ** 2 for place, value in enumerate(row)]
        assert float(error) == pytest.approx(math.sqrt(sum(squares)), abs=1e-5)


def test_it_is_the_training_of_the_teacher(recorded: Path, tmp_path: Path) -> None:
    teacher.train(TeacherRecipe(**COMMON), TOY, tmp_path)
    curves = [parquet.read_table(folder / "curve.parquet").to_pylist() for folder in (recorded, tmp_path)]
    assert curves[0] == curves[1]
    found = dynamics.load(recorded, RECIPE.key)
    assert found.margins.shape == found.errors.shape == (3, 33)
    for row, margins in zip(curves[0], found.margins, strict=True):
        seen = ~np.isnan(margins)
        assert seen.sum() == 32
        assert row["train_top1_pct"] == pytest.approx(100 * (margins[seen] > 0).mean())


def test_an_interrupted_recording_ends_as_an_undisturbed_one(recorded: Path, tmp_path: Path) -> None:
    epochs: list[float] = []

    def stop(fraction: float, note: str) -> None:
        epochs.append(fraction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dynamics.record(RECIPE, TOY, tmp_path, progress=stop)
    (tmp_path / "epochs" / "00001.safetensors").write_bytes(b"torn")  # of an epoch that was not finished
    result = dynamics.record(RECIPE, TOY, tmp_path, progress=lambda fraction, note: epochs.append(fraction))
    assert epochs == pytest.approx([1 / 3, 2 / 3, 1.0]), "the first epoch was not run again"
    whole, parts = (dynamics.load(folder, RECIPE.key) for folder in (recorded, tmp_path))
    np.testing.assert_array_equal(whole.margins, parts.margins)
    np.testing.assert_array_equal(whole.errors, parts.errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.parquet", "dynamics.safetensors"]
    assert (result["images"], result["epochs"], result["ran_precision"]) == (33, 3, "fp32")


@pytest.mark.parametrize("left", [0, 100])
def test_a_checkpoint_without_what_its_epochs_recorded_is_not_resumed(
    recorded: Path, tmp_path: Path, left: int
) -> None:
    def stop(fraction: float, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dynamics.record(RECIPE, TOY, tmp_path, progress=stop)
    path = tmp_path / "epochs" / "00000.safetensors"
    head = path.read_bytes()[:left]
    path.unlink()  # not uploaded yet when the machine was lost
    if head:
        path.write_bytes(head)
    notes: list[str] = []
    dynamics.record(RECIPE, TOY, tmp_path, progress=lambda fraction, note: notes.append(note))
    assert notes[0] == "restarting: what was recorded in epoch 1 is missing or damaged"
    assert notes[1].startswith("epoch 1/3")
    whole, again = (dynamics.load(folder, RECIPE.key) for folder in (recorded, tmp_path))
    np.testing.assert_array_equal(whole.margins, again.margins)


def test_the_file_of_another_recipe_is_refused(recorded: Path) -> None:
    with pytest.raises(DataCorrupt, match=f"was recorded by recipe {RECIPE.key[:12]}, expected 0123"):
        dynamics.load(recorded, "0123" * 16)


def test_the_recipe_is_computed_like_any_other(tmp_path: Path) -> None:
    roots = Roots(None, tmp_path / "home")
    digits = open_dataset("digits", roots)
    recipe = RECIPE.model_copy(
        update={
            "data": Data(name="digits", fingerprint=digits.fingerprint),
            "classes": digits.info.classes,
            "training": RECIPE.training.model_copy(update={"epochs": 1, "batch_size": 64}),
        }
    )
    assert from_json(to_json(recipe)).key == recipe.key
    entry = perform(recipe, FolderStore(tmp_path / "store"), roots, tmp_path)
    assert entry.kind == "training_dynamics" and entry.result["images"] == digits.info.train_count
    assert sorted(entry.files) == ["curve.parquet", "dynamics.safetensors"]
    assert not recipe.counts_as_generation
    json.dumps(entry.result)
