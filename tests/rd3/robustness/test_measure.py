"""Kept students are those that were tested, and what is measured with them is that of plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rd3.augment import to_unit
from rd3.campaign.command import main
from rd3.datasets import Dataset, Roots, open_dataset
from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.evaluation.kept import load_student
from rd3.kept_students import without_student
from rd3.perform import Part, perform, perform_pack
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe, RobustnessRecipe, SetRecipe, to_json
from rd3.robustness import measure as measuring
from rd3.robustness.calibration import probabilities
from rd3.robustness.corruptions import corrupted
from rd3.store import STUDENT, FolderStore

FIELDS = {"labels": "hard", "loss": "ce", "epochs": 4, "precision": "fp32", "lr": 0.01}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(None, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def digits(roots: Roots) -> Dataset:
    return open_dataset("digits", roots)


@pytest.fixture(scope="module")
def chosen(digits: Dataset) -> SetRecipe:
    data = {"name": "digits", "fingerprint": digits.fingerprint}
    common = {"data": data, "classes": digits.info.classes, "resolution": digits.info.resolution}
    return SetRecipe(**common, method="random", version=1, settings={}, ipc=2, set_seed=0)


def evaluation(chosen: SetRecipe, digits: Dataset, seed: int = 0, **fields: object) -> EvaluationRecipe:
    protocol = resolve_protocol("rd3", factor=1, same_network=False, set_size=20, overrides=FIELDS | fields)
    given = {"protocol": protocol, "student": "convnet_w32", "student_seed": seed}
    return EvaluationRecipe.of(chosen, teachers=[], **given, normalisation=digits.info.normalisation)


@pytest.fixture
def store(chosen: SetRecipe, roots: Roots, tmp_path: Path) -> FolderStore:
    found = FolderStore(tmp_path / "store")
    found.put(perform(chosen, found, roots, tmp_path / "set"), tmp_path / "set" / "result")
    return found


def recount(one: EvaluationRecipe, folder: Path, digits: Dataset, batch: int = 250) -> int:
    """Correct predictions of the kept student on the test images."""
    student = load_student(folder, one, digits.info, device=torch.device("cpu"), precision="fp32")
    labels = torch.from_numpy(digits.labels("test").copy())
    with torch.no_grad():
        parts = torch.arange(len(labels)).split(batch)
        guesses = [student(to_unit(digits.images("test", part.tolist()))).argmax(1) for part in parts]
    return int((torch.cat(guesses) == labels).sum())


@pytest.mark.parametrize("fields", [{}, {"ema": 0.9}])
def test_kept_weights_give_the_recorded_number_of_correct_predictions(fields, chosen, digits, store, roots, tmp_path):
    one = evaluation(chosen, digits, **fields)
    plain = perform(one, store, roots, tmp_path / "plain")
    kept = perform(one, store, roots, tmp_path / "kept", keep_student=True)
    assert kept.key == plain.key and kept.result["correct"] == plain.result["correct"]
    assert set(kept.files) - set(plain.files) == {STUDENT}
    assert kept.result["correct"] == recount(one, tmp_path / "kept" / "result", digits) > 34
    tensors = load_file(tmp_path / "kept" / "result" / STUDENT)
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_the_students_of_a_pack_are_kept_one_by_one(chosen, digits, store, roots, tmp_path):
    recipes = [evaluation(chosen, digits, seed) for seed in (0, 1, 2)]
    parts = [Part(one, tmp_path / one.key, keep_student=one is not recipes[1]) for one in recipes]
    entries = perform_pack(parts, store, roots)
    assert [STUDENT in entry.files for entry in entries] == [True, False, True]
    for one, entry in zip(recipes[::2], entries[::2], strict=True):
        assert recount(one, tmp_path / one.key / "result", digits) == entry.result["correct"]


@pytest.fixture
def kept(chosen, digits, store, roots, tmp_path) -> EvaluationRecipe:
    """An evaluation in the store with its student."""
    one = evaluation(chosen, digits)
    store.put(perform(one, store, roots, tmp_path / "one", keep_student=True), tmp_path / "one" / "result")
    return one


def test_figures_are_those_of_plain_loops(kept, digits, store, roots, tmp_path):
    recipe = RobustnessRecipe.of(kept, ["contrast", "gaussian_noise"])
    entry = perform(recipe, store, roots, tmp_path / "measured")
    recorded = store.find("evaluation", kept.key).result
    assert (entry.result["correct"], entry.result["tested"]) == (recorded["correct"], 340)
    assert entry.result["top1_pct"] == recorded["top1_pct"]
    student = load_student(
        store.fetch("evaluation", kept.key), kept, digits.info, device=torch.device("cpu"), precision="fp32"
    )
    labels, places = digits.labels("test"), range(340)
    found = {}
    for name in recipe.corruptions:
        for severity in range(1, 6):
            images = corrupted(digits.images("test", places), name, severity, places)
            with torch.no_grad():
                found.setdefault(name, []).append(int((student(to_unit(images)).argmax(1).numpy() == labels).sum()))
    written = json.loads((tmp_path / "measured" / "result" / measuring.RESULT).read_text())
    assert written["corrupted_correct"] == found
    assert entry.result["contrast_top1_pct"] == pytest.approx(100 * sum(found["contrast"]) / (5 * 340))
    both = [sum(counts) for counts in zip(*found.values(), strict=True)]
    assert entry.result["severity_3_top1_pct"] == pytest.approx(100 * both[2] / 680)
    assert entry.result["corrupted_top1_pct"] == pytest.approx(100 * sum(both) / 3400)
    with torch.no_grad():
        logits = student(to_unit(digits.images("test", places))).numpy()
    chances = probabilities(logits)
    assert entry.result["nll"] == pytest.approx(-np.log(chances[np.arange(340), labels]).mean(), rel=1e-5)
    assert sum(each["images"] for each in written["reliability"]) == 340
    assert entry.result["calibration_temperature"] > 0 and "scaled_ece_pct" in entry.result


def test_any_batch_size_gives_the_same_counts(kept, store, roots, tmp_path, monkeypatch):
    recipe = RobustnessRecipe.of(kept, ["shot_noise"])
    whole = perform(recipe, store, roots, tmp_path / "whole").result
    monkeypatch.setattr("rd3.evaluation.student.TEST_BATCH", 37)
    parts = perform(recipe, store, roots, tmp_path / "parts").result
    for name in ("correct", "corrupted_top1_pct", "shot_noise_top1_pct"):
        assert parts[name] == whole[name]
    assert parts["nll"] == pytest.approx(whole["nll"], rel=1e-5)


def test_without_weights_the_sentence_names_the_key_of_the_grid(chosen, digits, store, roots, tmp_path):
    one = evaluation(chosen, digits)
    store.put(perform(one, store, roots, tmp_path / "one"), tmp_path / "one" / "result")
    with pytest.raises(DataMissing, match=r"stored without the weights of its student. Fix: .*keep_students: true"):
        perform(RobustnessRecipe.of(one, []), store, roots, tmp_path / "measured")


def test_weights_of_another_network_and_corruptions_that_are_left_out(kept, digits, store, roots, tmp_path):
    with pytest.raises(BadValue, match="Corruption snow is not computed: it needs ImageMagick"):
        perform(RobustnessRecipe.of(kept, ["snow"]), store, roots, tmp_path / "snow")
    save_file({"weight": torch.zeros(1)}, tmp_path / STUDENT)
    with pytest.raises(DataCorrupt, match=r"does not fit the student: .*Fix: run the evaluation again"):
        load_student(tmp_path, kept, digits.info, device=torch.device("cpu"), precision="fp32")


def test_recipes_in_a_folder_keep_the_students_that_others_need(chosen, digits, roots, tmp_path):
    first, second = evaluation(chosen, digits, 0), evaluation(chosen, digits, 1)
    folder = tmp_path / "recipes"
    folder.mkdir()
    for place, one in enumerate([chosen, first, second, RobustnessRecipe.of(second, [])]):
        (folder / f"{place}.json").write_text(to_json(one))
    where = ["--store", str(tmp_path / "s"), "--out", str(tmp_path / "o"), "--home", str(roots.home)]
    assert main([str(folder), *where]) == 0
    made = FolderStore(tmp_path / "s")
    assert [STUDENT in made.find("evaluation", one.key).files for one in (first, second)] == [False, True]
    assert made.find("robustness", RobustnessRecipe.of(second, []).key).result["tested"] == 340


@pytest.mark.parametrize("every", [False, True])
def test_recipes_in_a_folder_add_the_student_that_the_store_lacks(every, chosen, digits, roots, tmp_path):
    first, second = evaluation(chosen, digits, 0), evaluation(chosen, digits, 1)
    folder, made = tmp_path / "recipes", FolderStore(tmp_path / "s")
    folder.mkdir()
    for place, one in enumerate([chosen, first, second]):
        (folder / f"{place}.json").write_text(to_json(one))
    words = [str(folder), "--store", str(made.root), "--out", str(tmp_path / "o"), "--home", str(roots.home)]
    assert main(words) == 0
    recorded = [made.find("evaluation", one.key) for one in (first, second)]
    (folder / "3.json").write_text(to_json(RobustnessRecipe.of(second, [])))
    assert main([*words, *["--keep-students"] * every]) == 0
    found = [made.find("evaluation", one.key) for one in (first, second)]
    assert [STUDENT in one.files for one in found] == [every, True]
    assert [without_student(one) for one in found] == recorded
    for one in (first, second):
        made.fetch("evaluation", one.key)
    assert made.find("robustness", RobustnessRecipe.of(second, []).key).result["correct"] == found[1].result["correct"]


def test_a_store_with_another_result_gets_no_student_and_nothing_is_measured(chosen, digits, roots, tmp_path, capsys):
    one, made = evaluation(chosen, digits), FolderStore(tmp_path / "s")
    made.put(perform(chosen, made, roots, tmp_path / "set"), tmp_path / "set" / "result")
    entry = perform(one, made, roots, tmp_path / "one")
    other = entry.model_copy(update={"result": entry.result | {"correct": entry.result["correct"] + 1}})
    made.put(other, tmp_path / "one" / "result")
    folder = tmp_path / "recipes"
    folder.mkdir()
    for place, recipe in enumerate([one, RobustnessRecipe.of(one, [])]):
        (folder / f"{place}.json").write_text(to_json(recipe))
    words = [str(folder), "--store", str(made.root), "--out", str(tmp_path / "o"), "--home", str(roots.home)]
    assert main(words) == 3
    assert "ran again to keep its student and has" in capsys.readouterr().err
    assert made.find("evaluation", one.key) == other.sealed()
