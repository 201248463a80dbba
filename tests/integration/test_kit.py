"""The kit on a bare Python with an empty home: cut by the deadline, taken up, brought back, equal to a plain run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bare_python import make_bare_python
from tiny_grid import session_in

from pipelines.transfer.results import import_results
from rd3 import run
from rd3.parts import holds_parts
from rd3.store import Entry, FolderStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400), pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
KIT = ROOT / "infra" / "kit"
GRID = """
methods: [random]
datasets: [digits]
ipc: [1]
teacher: resnet18_w16
student_seeds: [0, 1]
protocol: {epochs: 20}
"""


def python(*words: object, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of this environment that must succeed, with a home of RD3's own."""
    own = {"RD3_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RD3_")} | own | variables
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=home.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with ``recipes``, a ``kit`` for this Python, and a ``plain`` store made by one process in peace."""
    folder = tmp_path_factory.mktemp("kit")
    (folder / "tiny.yaml").write_text(GRID)
    home = folder / "here"
    rd3 = ["-m", "pipelines.cli"]
    python(*rd3, "plan", "tiny.yaml", "--recipes", folder / "recipes", "--store", folder / "parents", home=home)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pack = [KIT / "pack.py", folder / "recipes", "--store", folder / "parents", "--out", folder / "kit"]
    said = python(*pack, "--python", version, home=home).stdout
    assert "4 recipes of 4 are in" in said
    places = {"store": folder / "plain", "out": folder / "scratch", "home": home}
    assert (
        run.main([str(folder / "recipes"), *(str(word) for name in places for word in (f"--{name}", places[name]))])
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return make_bare_python(tmp_path_factory.mktemp("bare") / "env")


def there(bare: Path, place: Path, out: str, minutes: float, *words: str) -> tuple[int, str]:
    """The one command on the machine; its exit code and its log."""
    (place / "empty").mkdir(exist_ok=True)
    command = [bare, KIT / "run.py", "--kit", place / "kit", "--work", place / "work", "--out", place / out]
    command += ["--device", "cpu", "--workers", "2", "--minutes", str(minutes), *words]
    environment = {"PATH": os.environ["PATH"], "HOME": str(place / "empty")}
    done = subprocess.run(list(map(str, command)), env=environment, cwd=place / "empty", capture_output=True, text=True)
    return done.returncode, (place / out / "log.txt").read_text()


def entries(store: Path) -> dict[str, Entry]:
    paths = store.glob("by-key/*/*.json")
    return {path.stem: Entry.model_validate_json(path.read_bytes()) for path in paths}


def test_the_bare_python_lacks_what_the_machine_lacks(bare):
    for module in ("pydantic", "yaml", "ray", "mlflow", "optuna", "boto3", "diffusers"):
        said = subprocess.run([bare, "-c", f"import {module}"], capture_output=True, text=True).stderr
        assert "ModuleNotFoundError" in said, f"{module}: {said}"


def test_cut_and_taken_up_the_results_are_those_of_a_plain_run(bare, place):
    # Some eight seconds for the recipes, and the teacher alone trains for longer.
    code, log = there(bare, place, "out1", 0.2, "--tests", "", "--benchmarks", "-m no_such_suite")
    assert code in (4, 124), log  # 124: on a busy machine the recipes do not stop in time, and are ended
    assert "benchmarks: skipped" in log and f"campaign: exit code {code}" in log
    for _call in range(5):  # one is enough on most machines
        code, log = there(bare, place, "out2", 6.0, "--benchmarks", "")
        if code != 4:
            break
    assert code == 0, log
    assert "no CUDA device here" in log and "tests: exit code 0" in log
    for out in ("out1", "out2"):
        files = list((place / out).iterdir())
        assert len(files) <= 8 and all(path.stat().st_size <= 16e6 for path in files)
    assert list((place / "empty").iterdir()) == []

    session = session_in(place / "fresh")
    if holds_parts(place / "out1"):
        import_results(place / "out1", session)
    import_results(place / "out2", session)
    assert not any(one.new for one in import_results(place / "out2", session))
    plain, brought = entries(place / "plain"), entries(place / "fresh" / "artifacts")
    assert plain.keys() == brought.keys() and len(plain) == 4
    for key, entry in plain.items():
        assert brought[key].content == entry.content
        assert brought[key].result.get("correct") == entry.result.get("correct")


def test_what_is_to_be_left_there_is_not_brought_back(bare, place):
    """Called again when everything is done, it collects all but that."""
    teacher = next(key for key, entry in entries(place / "work" / "store").items() if entry.kind == "teacher")
    code, log = there(bare, place, "out3", 6.0, "--tests", "", "--benchmarks", "", "--leave", teacher)
    assert code == 0, log
    names = {name for path in (place / "out3").glob("*.zip") for name in zipfile.ZipFile(path).namelist()}
    assert any("by-key/evaluation/" in name for name in names)
    assert not any(teacher in name for name in names)
    code, log = there(bare, place, "out4", 6.0, "--tests", "", "--benchmarks", "", "--leave", "0" * 64)
    assert (code, "the kit has no such recipe" in log) == (2, True)


def test_a_kit_that_did_not_arrive_whole_is_said_in_the_log(bare, place, tmp_path):
    recipe = min((place / "kit" / "recipes").iterdir())
    whole = recipe.read_text()
    recipe.write_text(whole + " ")
    try:
        code, log = there(bare, place, str(tmp_path / "out"), 1.0)
    finally:
        recipe.write_text(whole)
    assert code == 2
    assert f"{recipe} did not arrive as it was packed; pack and send it again" in log


def test_a_compressed_kit_is_a_single_file_that_is_unpacked_there(bare, place):
    out = place / "compressed"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    words = [KIT / "pack.py", place / "recipes", "--store", place / "parents", "--out", out, "--python", version]
    python(*words, home=place / "here")
    python(*words, "--compress", home=place / "here")
    assert [path.name for path in out.iterdir()] == ["kit.tar.xz"]
    code, log = there(bare, place, "out5", 6.0, "--tests", "", "--benchmarks", "", "--kit", out)
    assert code == 0, log  # everything is done: its store is that of the kit before
    unpacked = place / "work" / "kit"
    folders = ("recipes", "wheels")
    for one, other in ((place / "kit" / name, unpacked / name) for name in folders):
        assert {path.name: path.read_bytes() for path in one.iterdir()} == {
            path.name: path.read_bytes() for path in other.iterdir()
        }


def test_wheels_are_for_the_machine_that_is_named(place):
    names = {path.name.split("-")[0] for path in (place / "kit" / "wheels").iterdir()}
    assert names == {
        "annotated_types", "pydantic", "pydantic_core", "pytest_timeout", "pyyaml", "typing_extensions",
        "typing_inspection",
    }  # fmt: skip
    for path in (place / "kit" / "wheels").iterdir():
        assert zipfile.is_zipfile(path)


def test_a_wheel_for_another_python_is_not_taken_for_one_of_this(tmp_path):
    spec = importlib.util.spec_from_file_location("pack", KIT / "pack.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    names = ["pydantic-2.14.3-py3-none-any.whl", "pydantic_core-2.50.4-cp312-cp312-manylinux2014_x86_64.whl"]
    for name in names:
        (tmp_path / name).touch()
    assert pack._usable_wheel(tmp_path, "pydantic==2.14.3", "311").name == names[0]
    assert pack._usable_wheel(tmp_path, "pydantic", "313").name == names[0]
    assert pack._usable_wheel(tmp_path, "pydantic==2.14.2", "312") is None
    assert pack._usable_wheel(tmp_path, "pydantic-core==2.50.4", "312").name == names[1]
    assert pack._usable_wheel(tmp_path, "pydantic-core==2.50.4", "311") is None


def refused(place: Path, *words: object) -> str:
    """What pack.py says when it refuses."""
    environment = {**os.environ, "RD3_HOME": str(place / "here"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, KIT / "pack.py", *words, "--no-wheels", "--out", place / "other"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_too_much_is_refused_with_the_largest_items(place):
    said = refused(place, place / "recipes", "--limit", "0.5")
    assert "at most 0.5 may travel. Largest, in MB: docs/results" in said
    assert not (place / "other" / "kit.json").exists()


def test_parents_that_nobody_has_and_recipes_that_are_done_are_refused(place):
    [evaluation, *_others] = sorted((place / "recipes").glob("*-evaluation-*.json"))
    assert "2 parents are neither among the recipes nor in the store, the first is set" in refused(place, evaluation)
    assert "All 4 recipes are in" in refused(place, place / "recipes", "--store", place / "plain")


def test_parents_come_along_from_the_store(place):
    folder = place / "parents-only"
    [evaluation, *_others] = sorted((place / "recipes").glob("*-evaluation-*.json"))
    store = FolderStore(place / "plain")
    recipe = json.loads(evaluation.read_text())
    kept = FolderStore(folder)
    for kind, key in (("set", recipe["set"]), ("teacher", recipe["teachers"][0])):
        kept.put(store.find(kind, key), store.fetch(kind, key))
    out = place / "with-parents"
    python(KIT / "pack.py", evaluation, "--store", folder, "--no-wheels", "--out", out, home=place / "here")
    packed = FolderStore(out / "store")
    packed.fetch("set", recipe["set"])
    packed.fetch("teacher", recipe["teachers"][0])
    assert len(list((out / "recipes").iterdir())) == 1

    inside = shutil.copytree(folder, place / "other" / "store")
    said = refused(place, evaluation, "--store", inside)
    assert f"is in the kit {place / 'other'}, whose folders are replaced. Fix: choose another --out" in said
    assert FolderStore(inside).names() == kept.names(), "nothing was removed"
