"""Recipes from the command line, on a machine without engines: one by one, or a folder of them."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rd3 import perform, run
from rd3.campaign.command import read_recipes
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
        precision="auto",
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


def test_hidden_files_beside_recipes_are_none(chain, tmp_path):
    (tmp_path / "set.json").write_text(to_json(chain[1][1]))
    (tmp_path / ".#set.json").symlink_to("user@host.1")  # Emacs, while changes are not saved
    (tmp_path / "._set.json").write_bytes(b"\0\5\x16\7")  # macOS, on a disk of another system
    assert read_recipes([tmp_path]) == [chain[1][1]]


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


def test_labels_of_an_evaluation_are_written_from_its_store(chain, tmp_path):
    folder, (teacher, made, evaluation) = chain
    assert [do(folder, recipe.kind) for recipe in (teacher, made)] == [0, 0]
    store, roots = FolderStore(folder / "store"), Roots(None, folder / "home")
    protocol = evaluation.protocol.model_copy(update={"soft_labels": "stored"})
    kept = evaluation.model_copy(update={"protocol": protocol})
    result = perform.perform(kept, store, roots, tmp_path / "evaluation").result
    assert (result["label_bytes"], result["image_steps"]) == (2 * 10 * 10 * 2, 2 * 10)
    written = perform.export_labels(kept, store, roots, tmp_path / "labels", precision=result["ran_precision"])
    files = sorted((tmp_path / "labels" / "labels").iterdir())
    assert [path.name for path in files] == ["epoch_0001.logits", "epoch_0002.logits"]
    assert written == sum(path.stat().st_size for path in files) == result["label_bytes"]


def test_a_campaign_without_its_dataset_ends_before_it_begins(chain, tmp_path, monkeypatch, capsys):
    _folder, (teacher, made, _evaluation) = chain
    absent = {"data": made.data.model_copy(update={"name": "cifar10"})}
    for number, recipe in enumerate((teacher, made)):
        (tmp_path / f"{number}.json").write_text(to_json(recipe.model_copy(update=absent)))
    words = [str(tmp_path), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    monkeypatch.setenv("RD3_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "home"))
    assert run.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("not found") == 1
    assert f"{tmp_path}/data/cifar10" in said  # where RD3_DATA and RD3_HOME say, as with `rd3`
    assert f"{tmp_path}/home/data/cifar10" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "2.json").write_text(to_json(made))  # its dataset is there, so it runs, and the others fail
    assert run.main(words) == 3
    assert FolderStore(tmp_path / "store").find("set", made.key) is not None


def test_other_data_than_the_recipes_is_refused(chain, capsys):
    folder, recipes = chain
    foreign = recipes[1].model_copy(update={"data": recipes[1].data.model_copy(update={"fingerprint": "0" * 32})})
    (folder / "foreign.json").write_text(to_json(foreign))
    assert do(folder, "foreign") == 2
    assert "the recipe expects 000000000000" in capsys.readouterr().err


def test_a_recipe_of_an_older_format_is_refused_where_its_parents_keys_have_changed(chain, capsys):
    folder, recipes = chain
    plain = json.loads(to_json(recipes[2]))
    for name in ("format", "augmentation"):
        plain.pop(name, None)
        plain["protocol"].pop(name, None)
    plain["protocol"] |= {"loss": "kl", "temperature": 20.0, "scale_t2": False, "factor": 1, "precision": "bf16"}
    (folder / "older.json").write_text(json.dumps(plain))
    assert do(folder, "older") == 2
    assert "The recipe is of an older format" in capsys.readouterr().err


def test_a_missing_file_and_a_broken_one_are_said(chain, capsys):
    folder, _recipes = chain
    assert do(folder, "nothing") == 2
    (folder / "broken.json").write_text('{"kind": "set"}')
    assert do(folder, "broken") == 2
    assert "Not a recipe: set.data: Field required" in capsys.readouterr().err


def campaign(folder: Path, *words: str) -> list[str]:
    """The command for all recipes of a folder, with the scratch and the store in it."""
    places = ["--store", str(folder / "store"), "--out", str(folder / "out"), "--home", str(folder / "home")]
    return [str(folder / "recipes"), *places, *words]


def folder_of(recipes, folder: Path) -> Path:
    """Children have the first names, so that only the graph can bring them into order."""
    (folder / "recipes").mkdir(parents=True)
    for number, recipe in enumerate(reversed(recipes)):
        (folder / "recipes" / f"{number}.json").write_text(to_json(recipe))
    return folder


def test_a_folder_is_made_in_the_order_of_the_graph_and_only_once(chain, tmp_path, capsys):
    first, recipes = chain
    folder = folder_of(recipes, tmp_path)
    (folder / "recipes" / "9.json").write_text(to_json(recipes[0]))  # twice
    assert run.main(campaign(folder)) == 0
    said = capsys.readouterr().err
    assert "3/3 done" in said
    for recipe in recipes:
        one = FolderStore(first / "store").find(recipe.kind, recipe.key)
        many = FolderStore(folder / "store").find(recipe.kind, recipe.key)
        assert one.content == many.content
        assert one.result.get("correct") == many.result.get("correct")
    assert run.main(campaign(folder)) == 0
    assert capsys.readouterr().err == "already in the store\n"


def test_failures_are_one_line_each_and_the_others_go_on(chain, tmp_path, capsys):
    _folder, recipes = chain
    foreign = recipes[1].model_copy(update={"data": recipes[1].data.model_copy(update={"fingerprint": "0" * 32})})
    child = recipes[2].model_copy(update={"set": foreign.key, "teachers": (), "student_seed": 5})
    folder = folder_of([foreign, child, recipes[1]], tmp_path)
    assert run.main(campaign(folder)) == 3
    lines = capsys.readouterr().err.splitlines()
    assert sum("the recipe expects 000000000000" in line for line in lines) == 2, "the failure, and its child"
    assert any(line.split() == ["set", "0", "1", "1", "0", "0", "0"] for line in lines)
    assert any(line.split() == ["evaluation", "0", "0", "0", "1", "0", "0"] for line in lines)
    assert "Traceback" in (folder / "out" / foreign.key / "failure.txt").read_text()


def test_too_little_time_is_said_and_makes_nothing(chain, tmp_path, capsys):
    _first, recipes = chain
    folder = folder_of(recipes, tmp_path)
    assert run.main(campaign(folder, "--minutes", "0.0001")) == 2
    assert (
        "--minutes 0.0001 is too short to run anything: set random digits ipc1 takes about" in capsys.readouterr().err
    )
    assert not (folder / "store").exists()


@pytest.mark.parametrize("words", [("--minutes", "0"), ("--minutes", "soon"), ("--workers", "-1"), ("--threads", "0")])
def test_numbers_that_are_none_are_refused(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as left:
        run.main(campaign(tmp_path, *words))
    assert left.value.code == 2
    assert f"'{words[1]}' is not a number of" in capsys.readouterr().err


def test_a_folder_without_recipes_and_one_that_is_broken_are_named(chain, tmp_path, capsys):
    (tmp_path / "recipes").mkdir()
    assert run.main(campaign(tmp_path)) == 2
    assert f"There is no recipe in {tmp_path / 'recipes'}." in capsys.readouterr().err
    (tmp_path / "recipes" / "a.json").write_text("{}")
    assert run.main(campaign(tmp_path)) == 2
    assert f"{tmp_path / 'recipes' / 'a.json'}: Not a recipe" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("--share", "1/2")])
def test_a_scratch_folder_that_cannot_be_made_is_said(chain, tmp_path, capsys, words):
    folder, _recipes = chain
    (tmp_path / "file").write_text("in place of the folder")
    places = [
        "--store",
        str(tmp_path / "store"),
        "--out",
        str(tmp_path / "file" / "out"),
        "--home",
        str(folder / "home"),
    ]
    assert run.main([str(folder / "set.json"), *places, *words]) == 2
    assert f"Cannot write to {tmp_path / 'file' / 'out'}" in capsys.readouterr().err


def test_closed_streams_are_no_error(chain, tmp_path):
    """As under cron: no stdin, stdout and stderr."""
    _first, recipes = chain
    folder = folder_of([one for one in recipes if one.kind == "set"], tmp_path)
    command = shlex.join([sys.executable, "-m", "rd3.run", *campaign(folder)])
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(f"{command} <&- >&- 2>&-", shell=True, env=environment, check=False).returncode == 0
    assert len(list((folder / "store").glob("by-key/set/*.json"))) == 1


def test_shares_are_of_one_set(chain, tmp_path, capsys):
    _first, recipes = chain
    folder = folder_of(recipes, tmp_path)
    assert run.main(campaign(folder, "--share", "1/2")) == 2
    assert "--share 1/2 of 3 recipes: expected K/N and a single set." in capsys.readouterr().err
    alone = folder_of([one for one in recipes if one.kind == "set"], tmp_path / "alone")
    assert run.main(campaign(alone, "--share", "²/2")) == 2
    assert "--share ²/2 of a set: expected K/N" in capsys.readouterr().err
    for words in (["--workers", "2"], ["--keep-students"], ["--cache-logits", "1GB"]):
        assert run.main(campaign(alone, "--share", "1/2", *words)) == 2
        assert "--share generates blocks of one set in this process: it has no use for" in capsys.readouterr().err


def test_a_share_that_fails_is_said_in_a_line_as_other_failures(chain, tmp_path, monkeypatch, capsys):
    _first, recipes = chain
    folder = folder_of([recipes[1]], tmp_path)

    def full(*_given, **_options):
        raise OSError(errno.ENOSPC, "No space left on device", "00000.safetensors")

    monkeypatch.setattr(perform, "perform_blocks", full)
    assert run.main(campaign(folder, "--share", "1/2")) == 3
    assert capsys.readouterr().err.startswith("share 1/2 failed: No space left for 00000.safetensors.")
    assert "Traceback" in (folder / "out" / recipes[1].key / "failure.txt").read_text()


def test_an_imported_set_has_no_shares(chain, tmp_path, capsys):
    _first, recipes = chain
    foreign = recipes[1].model_copy(update={"method": "imported", "content": "0" * 64, "set_seed": None})
    assert run.main(campaign(folder_of([foreign], tmp_path), "--share", "1/2")) == 2
    assert f"The set {foreign.key[:12]} is imported, not computed." in capsys.readouterr().err


def test_a_share_keeps_the_time_limit_and_resumes(chain, tmp_path, capsys):
    """The limit ends before the first report."""
    _first, recipes = chain
    folder = folder_of([one for one in recipes if one.kind == "set"], tmp_path)
    words = campaign(folder, "--share", "1/2")
    assert run.main([*words, "--minutes", "0.00001"]) == 4
    assert "share 1/2 is unfinished; run again to resume" in capsys.readouterr().err
    assert run.main(words) == 0
    assert "share 1/2 is in" in capsys.readouterr().err


def test_ctrl_c_leaves_in_good_order_and_the_same_command_goes_on(chain, tmp_path):
    _first, recipes = chain
    training = recipes[0].training.model_copy(update={"epochs": 3})
    teacher = recipes[0].model_copy(update={"training": training})
    folder = folder_of([teacher], tmp_path)
    command = [sys.executable, "-m", "rd3.run", *campaign(folder, "--workers", "2")]
    environment = {**os.environ, "PYTHONPATH": str(Path(run.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    checkpoint = folder / "out" / teacher.key / "result" / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _out, said = first.communicate()
    assert first.returncode == 130, said
    assert "unfinished; run the same command again to resume" in said
    assert run.main(campaign(folder)) == 0
    curve = FolderStore(folder / "store").find("teacher", teacher.key).result
    assert curve["epochs"] == 3
