"""One recipe from the command line, on a machine without engines: teacher, set, evaluation, each from the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd3 import run
from rd3.datasets import Roots, open_dataset
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, TeacherRecipe, TeacherTraining, to_json
from rd3.store import FolderStore


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> tuple[Path, list]:
    """A folder and three recipes, small enough for seconds: one teacher epoch, two student epochs."""
    folder = tmp_path_factory.mktemp("alone")
    dataset = open_dataset("digits", Roots(None, folder / "home"))
    info = dataset.info
    shared = dict(classes=info.classes, resolution=info.resolution)
    data = Data(name="digits", fingerprint=dataset.fingerprint)
    training = TeacherTraining(epochs=1, batch_size=256, lr=0.05, momentum=0.9, weight_decay=0, crop="none", flip=False)
    teacher = TeacherRecipe(
        data=data,
        network="convnet",
        normalisation=info.normalisation,
        training=training,
        precision="bf16",
        seed=0,
        **shared,
    )
    made = SetRecipe(method="random", version=1, settings={}, data=data, ipc=1, set_seed=0, **shared)
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides={"epochs": 2})
    evaluation = EvaluationRecipe(
        set=made.key,
        teachers=(teacher.key,),
        protocol=protocol,
        student="convnet",
        student_seed=0,
        data=data,
        normalisation=info.normalisation,
        **shared,
    )
    recipes = [teacher, made, evaluation]
    for recipe in recipes:
        (folder / f"{recipe.kind}.json").write_text(to_json(recipe))
    return folder, recipes


def do(folder: Path, kind: str) -> int:
    words = [str(folder / f"{kind}.json"), "--store", str(folder / "store"), "--out", str(folder / "out")]
    return run.main([*words, "--home", str(folder / "home")])


def test_a_chain_of_recipes_fills_a_store(chain, capsys):
    folder, recipes = chain
    assert do(folder, "evaluation") == 2
    assert "is neither in the store nor among the recipes" in capsys.readouterr().err
    assert [do(folder, recipe.kind) for recipe in recipes] == [0, 0, 0]
    store = FolderStore(folder / "store")
    entry = store.find("evaluation", recipes[2].key)
    assert entry.result["tested"] == 340
    assert 0 <= entry.result["correct"] <= 340
    assert {"result.json", "curve.parquet"} <= set(entry.files)
    assert "contact_sheet.png" in store.find("set", recipes[1].key).files
    assert do(folder, "evaluation") == 0
    assert "already in the store" in capsys.readouterr().err


def test_other_data_than_the_recipes_is_refused(chain, capsys):
    folder, recipes = chain
    foreign = recipes[1].model_copy(update={"data": recipes[1].data.model_copy(update={"fingerprint": "0" * 32})})
    (folder / "foreign.json").write_text(to_json(foreign))
    assert do(folder, "foreign") == 2
    assert "the recipe was written for 000000000000" in capsys.readouterr().err


def test_a_missing_file_and_a_broken_one_are_said(chain, capsys):
    folder, _recipes = chain
    assert do(folder, "nothing") == 2
    (folder / "broken.json").write_text('{"kind": "set"}')
    assert do(folder, "broken") == 2
    assert "Not a recipe: set.method: Field required" in capsys.readouterr().err
