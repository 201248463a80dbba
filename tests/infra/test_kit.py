"""The kit's two scripts in corners that need no machine: folders that are not there yet, and interrupted copies."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rd3.recipe import Data, SetRecipe, to_json

KIT = Path(__file__).parents[2] / "infra" / "kit"
RECIPE = SetRecipe(
    data=Data(name="digits", fingerprint="f" * 64),
    classes="c" * 64,
    resolution=32,
    method="random",
    version=1,
    settings={},
    ipc=1,
    set_seed=0,
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kit_{name}", KIT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_compressed_kit_without_wheels_makes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = script("pack")
    monkeypatch.setattr(pack, "_datasets", lambda _wanted, _roots: [])
    (tmp_path / "recipe.json").write_text(to_json(RECIPE))
    words = [tmp_path / "recipe.json", "--out", tmp_path / "new" / "kit", "--compress", "--no-wheels"]
    assert pack.main(list(map(str, words))) == 0
    with tarfile.open(tmp_path / "new" / "kit" / "kit.tar.xz") as opened:
        [name] = [name for name in opened.getnames() if name.endswith(f"set-{RECIPE.key[:12]}.json")]
        stored = opened.extractfile(name)
        assert stored is not None and stored.read().decode() == to_json(RECIPE)


def test_wheels_of_an_earlier_kit_do_not_stay_in_one_without_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be unpacked there, before the machine's own packages."""
    pack = script("pack")
    monkeypatch.setattr(pack, "_datasets", lambda _wanted, _roots: [])
    (tmp_path / "recipe.json").write_text(to_json(RECIPE))
    (tmp_path / "kit" / "wheels").mkdir(parents=True)
    (tmp_path / "kit" / "wheels" / "torch-1-py3-none-any.whl").write_bytes(b"of last year")
    assert pack.main([str(tmp_path / "recipe.json"), "--out", str(tmp_path / "kit"), "--no-wheels"]) == 0
    assert [path.name for path in (tmp_path / "kit").iterdir() if path.name != "kit.json"] == ["recipes"]


def test_the_state_of_a_download_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = script("pack")
    survey = SimpleNamespace(survey=lambda _roots: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(pack, "dataset_fingerprint", lambda *_names, **_options: "f" * 64)
    monkeypatch.setattr(pack, "dataset_source", lambda *_names: survey)
    for name in ("plain_text/train.parquet", ".cache/huggingface/download/train.incomplete"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"images")
    [item] = pack._datasets([RECIPE], pack.Roots(None, tmp_path / "home"))
    assert item.target == "data/digits/plain_text/train.parquet"


@pytest.fixture
def bench(tmp_path: Path):
    """The machine, with a kit that has one parent's file."""
    run = script("run")
    kit = tmp_path / "kit"
    (kit / "store").mkdir(parents=True)
    (kit / "store" / "weights").write_bytes(b"0123456789")
    (kit / "kit.json").write_text(json.dumps({"packed_at": "now", "commit": "c" * 40, "files": {}}))
    chosen = argparse.Namespace(
        kit=kit, work=tmp_path / "a work", out=tmp_path, minutes=1.0, benchmarks="-m benchmarks --out {notes}"
    )
    return run, run.Machine(chosen, SimpleNamespace(write=print))


def test_a_parent_that_was_copied_in_part_is_copied_again(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run, here = bench
    whole = shutil.copyfile

    def cut(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:4])
        raise InterruptedError

    monkeypatch.setattr(shutil, "copyfile", cut)
    with pytest.raises(InterruptedError):
        run._open_kit(here)
    monkeypatch.setattr(shutil, "copyfile", whole)
    run._open_kit(here)
    assert (here.work / "store" / "weights").read_bytes() == b"0123456789"


def test_a_step_ends_with_what_is_called_while_it_runs(bench, tmp_path: Path) -> None:
    """A collection that failed left the recipes running, unseen, after the command."""
    _run, here = bench
    left = tmp_path / "left"

    def tick() -> None:
        if left.exists():
            raise RuntimeError("of the test")

    words = ["sh", "-c", f"echo $$ > '{tmp_path}/new' && mv '{tmp_path}/new' '{left}' && exec sleep 600"]
    with pytest.raises(RuntimeError, match="of the test"):
        here.step("recipes", words, 600.0, tick)
    assert not Path(f"/proc/{left.read_text().strip()}").exists()


def test_the_folder_for_notes_may_have_a_space_in_its_name(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run, here = bench
    commands = []
    monkeypatch.setattr(here, "step", lambda _name, words, _seconds: commands.append(words))
    run._benchmarks(here)
    assert commands[0][1:] == ["-m", "benchmarks", "--out", str(here.work / "notes")]
