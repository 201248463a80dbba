"""The code and the grids that README and tutorials show: they run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.grid.catalog import Catalog
from pipelines.grid.files import parse_grid
from rd3.augmentations import AUGMENTATIONS
from rd3.losses import LOSSES
from rd3.methods import METHODS
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
    for registry in (METHODS, LOSSES, AUGMENTATIONS):
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


def test_all_grids_that_are_shown_can_be_read(registries, tmp_path):
    for page, registry in (("method", METHODS), ("loss", LOSSES), ("augmentation", AUGMENTATIONS)):
        load(registry, page, tmp_path)
    presets = tmp_path / "presets"
    presets.mkdir()
    mild = next(text for text in blocks(TUTORIALS / "protocol.md", "yaml") if "same_network" in text)
    (presets / "mild.yaml").write_text(mild, encoding="utf-8")
    seen = []
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if {"methods", "datasets", "ipc"} <= set(yaml.safe_load(text)):
                seen.append(parse_grid(text, page.stem, Catalog(presets=presets)).name)
    assert {"first", "claim", "closest", "losses", "cutout", "mild"} <= set(seen)


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
