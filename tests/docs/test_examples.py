"""The code and the grids that README and tutorials show: they run as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from pipelines.cli import app
from pipelines.grid.catalog import Catalog
from pipelines.grid.files import parse_grid
from rd3.augmentations import AUGMENTATIONS
from rd3.datasets import SOURCES, Dataset, DatasetInfo, Roots, add_folder, dataset_info, open_dataset
from rd3.losses import LOSSES
from rd3.methods import METHODS
from rd3.recipe import Data, SetRecipe
from rd3.registry import Registry
from rd3.testing import check_method

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    for registry in (METHODS, LOSSES, AUGMENTATIONS, SOURCES):
        registry.names()
        monkeypatch.setattr(registry, "_things", dict(registry._things))


def load(registry: Registry[Any], page: str, folder: Path) -> list[str]:
    """Register the first Python block of a tutorial, as if it were a file."""
    path = folder / f"{page}_example.py"
    path.write_text(blocks(TUTORIALS / f"{page}.md", "python")[0], encoding="utf-8")
    return registry.load_file(path)


def test_the_method_passes_the_conformance_suite(registries, tmp_path):
    [name] = load(METHODS, "method", tmp_path)
    assert [result.name for result in check_method(name, tmp=tmp_path) if not result.ok] == []


@pytest.mark.parametrize(("page", "registry"), [("loss", LOSSES), ("augmentation", AUGMENTATIONS)])
def test_the_example_passes_its_own_test(registries, tmp_path, page, registry):
    load(registry, page, tmp_path)
    shown: dict[str, Any] = {}
    exec(blocks(TUTORIALS / f"{page}.md", "python")[1], shown)
    tests = [thing for name, thing in shown.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def register_shapes(roots: Roots, folder: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetInfo:
    """Draw the images of the dataset tutorial in ``folder`` and register them."""
    monkeypatch.chdir(folder)
    exec(blocks(TUTORIALS / "dataset.md", "python")[0], {})
    return add_folder("shapes", folder / "shapes", roots, 32, say=lambda note: None)


def all_images(data: Dataset) -> set[tuple[int, bytes]]:
    """Label and pixels of every image."""
    return {
        (int(label), pixels.numpy().tobytes())
        for split in ("train", "test")
        for label, pixels in zip(data.labels(split), data.images(split, range(len(data.labels(split)))), strict=True)
    }


def test_the_dataset_is_the_same_as_a_folder_and_in_parquet(registries, tmp_path, monkeypatch):
    roots = Roots(data=tmp_path / "data", home=tmp_path / "home")
    folder = register_shapes(roots, tmp_path, monkeypatch)
    _draw, describe, convert = blocks(TUTORIALS / "dataset.md", "python")
    exec(convert, {})
    (tmp_path / "shapes_parquet.py").write_text(describe, encoding="utf-8")
    assert SOURCES.load_file(tmp_path / "shapes_parquet.py") == ["shapes-parquet"]
    page = (TUTORIALS / "dataset.md").read_text(encoding="utf-8")
    assert (
        f"{folder.train_count} training and {folder.test_count} test images, class list {folder.classes[:12]}" in page
    )
    as_folder, as_parquet = (open_dataset(name, roots) for name in ("shapes", "shapes-parquet"))
    assert as_folder.info.classes == as_parquet.info.classes
    assert all_images(as_folder) == all_images(as_parquet) and len(all_images(as_folder)) == 180
    pixels = as_parquet.images("train", range(150)).double() / 255
    stated = as_parquet.info.normalisation
    for found, expected in ((pixels.mean((0, 2, 3)), stated.mean), (pixels.std((0, 2, 3)), stated.std)):
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=0.01)


def commands(text: str) -> Iterator[str]:
    """What follows ``rd3`` in code blocks and in code within sentences."""
    text = re.sub(r"\\\n\s*", " ", text)
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        yield from re.findall(r"^(?:\$ )?(?:\w+=\S+ )*rd3 (.*)", block, flags=re.MULTILINE)
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (found.replace("\n", " ") for found in re.findall(r"`rd3 ([^`]*)`", plain))


def mistake(line: str) -> str:
    """What is wrong with a command line, by the names of commands and options and the number of arguments."""
    words = iter(shlex.split(re.split(r"\s(?:[#|>&;]|\.\.\.)", f" {line}")[0]))
    command: Any = typer.main.get_command(app)
    given = 0
    for word in words:
        known = getattr(command, "commands", None)
        name = word.partition("=")[0]
        if known is not None and not word.startswith("-"):
            if word not in known:
                return f"there is no command {word}"
            command = known[word]
        elif word.startswith("-") and name != "--help":
            options = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
            if name not in options:
                return f"there is no option {name}"
            if not options[name].is_flag and "=" not in word:
                next(words, None)
        else:
            given += not word.startswith("-")
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    return f"{given} arguments" if given > len(arguments) and all(one.nargs == 1 for one in arguments) else ""


@pytest.mark.parametrize("name", ["README", "CONTRIBUTING", "SECURITY"])
def test_links_of_pages_outside_the_site_lead_to_files(name):
    """mkdocs checks those inside the site."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_every_command_that_is_shown_exists(page):
    text = page.read_text(encoding="utf-8").replace("experiment `rd3 sweeps`", "")
    assert {line: mistake(line) for line in commands(text) if mistake(line)} == {}


def test_a_command_that_does_not_exist_is_noticed():
    wrong = ("teacher train mlp digits", "data doctor --jsn", "planes grid.yaml")
    assert [mistake(line) for line in wrong] == [
        "2 arguments",
        "there is no option --jsn",
        "there is no command planes",
    ]


class Shown(Catalog):
    """With the imported set that the documentation shows."""

    def known_set(self, text: str) -> SetRecipe | None:
        digits = dataset_info("digits")
        return SetRecipe(
            method="imported",
            version=1,
            settings={},
            data=Data(name="digits", fingerprint="f"),
            classes=digits.classes,
            resolution=digits.resolution,
            ipc=5,
            content=text,
        )


def test_all_grids_that_are_shown_can_be_read(registries, tmp_path, monkeypatch):
    for page, registry in (("method", METHODS), ("loss", LOSSES), ("augmentation", AUGMENTATIONS)):
        load(registry, page, tmp_path)
    roots = Roots(data=None, home=tmp_path / "home")
    register_shapes(roots, tmp_path, monkeypatch)
    presets = tmp_path / "presets"
    presets.mkdir()
    mild = next(text for text in blocks(TUTORIALS / "protocol.md", "yaml") if "same_network" in text)
    (presets / "mild.yaml").write_text(mild, encoding="utf-8")
    seen = []
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if {"methods", "datasets", "ipc"} <= set(yaml.safe_load(text)):
                seen.append(parse_grid(text, page.stem, Shown(roots, presets=presets)).name)
    assert {"first", "claim", "closest", "losses", "cutout", "mild", "shapes"} <= set(seen)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "home"))
    shown: dict[str, Any] = {}
    for block in blocks(TUTORIALS / "notebook.md", "python"):
        exec(block, shown)
    assert list(shown["results"].status) == ["done", "done"]
    assert (tmp_path / "home" / "reports" / "notebook" / "report.html").is_file()
