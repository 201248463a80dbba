"""Imported sets in a grid, beside methods: their cells, and the mistakes in naming them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipelines import Workspace
from pipelines.byhand import evaluations_of
from pipelines.grid.catalog import Catalog
from pipelines.grid.located_yaml import GridErrors
from rd3.errors import BadValue
from rd3.recipe import SetRecipe, TeacherRecipe
from rd3.store import Entry
from rd3.synthetic_set import import_tensors
from tests.pipelines.sweep_text import parse_sweep

HARD = {"rd3-reduced": {"labels": "hard", "epochs": 1}}
GRID: dict[str, Any] = {
    "name": "tiny",
    "methods": ["random"],
    "datasets": ["digits"],
    "ipc": [1, 2],
    "teacher": "resnet18_w16",
    "protocols": [HARD],
    "students": ["convnet_w32"],
    "student_seeds": [0, 1],
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA"):
        monkeypatch.delenv(name, raising=False)
    yield Workspace(home=tmp_path / "home")


def imported(work: Workspace, ipc: int, seed: int, *, split: Any = "train", soft: bool = False) -> SetRecipe:
    """A set of noise in the ledger."""
    count, data = 10 * ipc, work.dataset("digits")
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    tensors = {"images": pixels, "labels": torch.arange(count) % 10}
    if soft:
        tensors["soft_labels"] = torch.full((count, 10), 0.01) + 0.9 * torch.eye(10).repeat(ipc, 1)
    folder = work.session.home / f"noise-{ipc}-{seed}"
    folder.parent.mkdir(exist_ok=True)
    save_file(tensors, f"{folder}.safetensors")
    recipe = import_tensors(Path(f"{folder}.safetensors"), data, folder, split=split)
    entry = Entry.of(recipe, folder, {"count": count}, recipe.content or "", source="noise.safetensors")
    work.session.ledger.add(entry)
    return recipe


def mistakes(work: Workspace, **changed: Any) -> str:
    with pytest.raises(GridErrors) as caught:
        work.grid(GRID | changed)
    return str(caught.value)


def test_a_name_stands_for_its_sets_as_a_method_does_for_its_set_seeds(work: Workspace) -> None:
    one, two, other = imported(work, 1, 0), imported(work, 2, 0), imported(work, 2, 1)
    mtt = {"MTT": {"sets": [one.key[:12], two.key, other.key[:20]]}}
    expansion = work.grid(GRID | {"methods": ["random", mtt]}).expansion
    cells = [cell for cell in expansion.cells if cell.method == "MTT"]
    assert [(cell.ipc, cell.set_seed, cell.student_seed, cell.set) for cell in cells] == [
        (recipe.ipc, place, seed, recipe.key) for recipe, place in ((one, 0), (two, 0), (other, 1)) for seed in (0, 1)
    ]
    [others, *_rest] = [cell.overrides for cell in expansion.cells if cell.method == "random"]
    assert all(cell.teacher_network is None and cell.overrides == others for cell in cells)
    assert expansion.facts(two.key)["method"] == "MTT", "the name, in the tracking server's pages"
    assert {cell.method for cell in expansion.cells} == {"random", "MTT"}
    assert not {one.key, two.key, other.key} & expansion.larger_sets.keys(), "imported sets do not nest"


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_its_evaluations_are_those_of_rd3_evaluate(work: Workspace, labels: str) -> None:
    made = imported(work, 2, 0)
    grid = GRID | {
        "methods": [{"MTT": {"sets": [made.key[:12]]}}],
        "ipc": [2],
        "protocols": [{"rd3": {"labels": labels}}],
    }
    planned = work.grid(grid)
    fields = {"labels": labels}
    by_hand = evaluations_of(made.key, "resnet18_w16", "convnet_w32", "rd3", [0, 1], fields, Catalog.of(work.session))
    assert set(planned.expansion.recipes) == {recipe.key for recipe in by_hand}
    assert any(isinstance(recipe, TeacherRecipe) for recipe in by_hand) is (labels == "soft")


def test_rd3_evaluate_refuses_what_does_not_fit_the_dataset(work: Workspace) -> None:
    key, catalog = imported(work, 2, 0).key, Catalog.of(work.session)
    with pytest.raises(BadValue, match="test_resize is 16, but test images are cropped to 32 pixels"):
        evaluations_of(key, "resnet18_w16", None, "rd3", [0], {"test_resize": 16}, catalog)


def test_own_soft_labels_are_for_the_sets_that_have_some(work: Workspace) -> None:
    soft, plain = imported(work, 2, 0, soft=True), imported(work, 2, 1)
    methods = ["random", {"with": {"sets": [soft.key]}}, {"without": {"sets": [plain.key]}}]
    own = {"rd3-reduced": {"soft_labels": "own", "temperature": 1}}
    expansion = work.grid(GRID | {"methods": methods, "ipc": [2], "protocols": [own]}).expansion
    reasons = {cell.method: cell.reason for cell in expansion.cells}
    assert reasons["with"] == "" and reasons["random"] == reasons["without"] != ""
    assert not any(isinstance(recipe, TeacherRecipe) for recipe in expansion.recipes.values()), "no teacher is queried"


def test_an_ipc_without_sets_has_cells_that_say_so(work: Workspace) -> None:
    mtt = {"MTT": {"sets": [imported(work, 2, 0).key]}}
    cells = work.grid(GRID | {"methods": [mtt]}).expansion.cells
    assert {(cell.ipc, cell.reason) for cell in cells} == {(1, "no set of IPC 1 has been imported as MTT"), (2, "")}


def test_validation_takes_only_sets_that_were_made_without_its_images(work: Workspace) -> None:
    seen, clean = imported(work, 2, 0, split="train"), imported(work, 2, 1, split="fit")
    mtt = {"MTT": {"sets": [seen.key, clean.key]}}
    cells = work.grid(GRID | {"methods": [mtt], "ipc": [2], "test_on": "validation"}).expansion.cells
    reasons = {cell.set_seed: cell.reason for cell in cells}
    assert reasons == {0: f"set {seen.key[:12]} may have been made from the validation images", 1: ""}


def test_a_name_stands_for_one_list_of_sets_in_the_whole_grid(work: Workspace) -> None:
    one, other = ({"MTT": {"sets": [imported(work, 2, seed).key]}} for seed in (0, 1))
    same = GRID | {"ipc": [2], "methods": [one], "also": [{"protocols": ["rd3"]}]}
    assert len({cell.set for cell in work.grid(same).expansion.cells}) == 1
    assert "'MTT' stands for other sets above" in mistakes(work, ipc=[2], methods=[one, other])
    assert "'MTT' stands for other sets above" in mistakes(work, ipc=[2], methods=[one], also=[{"methods": [other]}])


def test_parts_and_demonstration_sizes_may_have_other_datasets_and_ipc(work: Workspace) -> None:
    one, two = imported(work, 1, 0), imported(work, 2, 1)
    mtt = [{"MTT": {"sets": [one.key, two.key]}}]
    cells = work.grid(GRID | {"ipc": [1], "methods": mtt, "also": [{"ipc": [2]}]}).expansion.cells
    assert {(cell.ipc, cell.set) for cell in cells} == {(1, one.key), (2, two.key)}
    work.grid(GRID | {"methods": mtt, "small": {"ipc": [2]}})
    said = mistakes(work, methods=mtt, datasets=["digitss"])
    assert "digitss" in said and "not in the grid" not in said, "one mistake, not two"


def test_a_set_whose_files_are_gone_blocks(work: Workspace) -> None:
    made = imported(work, 2, 0)  # an entry without files
    planned = work.grid(GRID | {"methods": [{"MTT": {"sets": [made.key]}}], "ipc": [2]}).plan()
    assert planned.totals()["blocked"] == 3 and planned.totals()["run"] == 0
    assert any("must be imported again: rd3 set import FILE --dataset digits" in item.reason for item in planned.items)


def test_sweeps_take_none(work: Workspace) -> None:
    plain = yaml.safe_load(files("pipelines").joinpath("sweeps/demo.yaml").read_text())
    sets = {"MTT": {"sets": [imported(work, 5, 0).key]}}
    with pytest.raises(GridErrors, match="A sweep takes no imported sets"):
        parse_sweep(yaml.safe_dump(plain | {"methods": ["random", sets]}), "demo", Catalog.of(work.session))


def test_mistakes_in_naming_sets(work: Workspace) -> None:
    made = imported(work, 5, 0)
    [random, *_rest] = work.grid(GRID).expansion.recipes.values()
    work.session.ledger.add(Entry(kind="set", key=random.key, recipe=random.model_dump(mode="json"), result={}))

    def said(name: str, values: Any) -> str:
        return mistakes(work, methods=["random", {name: values}])

    assert f"Set {made.key[:12]} is of digits at IPC 5, which are not in the grid" in said("MTT", {"sets": [made.key]})
    assert f"Set {random.key[:12]} was generated by random. Fix: write `random`" in said("MTT", {"sets": [random.key]})
    assert "There is no set 'ffffffff' in the ledger" in said("MTT", {"sets": ["ffffffff"]})
    assert "Expected the key of an imported set, got the number 46" in said("MTT", {"sets": [46]})
    assert "Expected a list of keys of imported sets, got the text" in said("MTT", {"sets": made.key})
    assert "Expected a list of keys" in said("MTT", {"sets": []})
    assert "Imported sets have no settings." in said("MTT", {"sets": [made.key], "iterations": 5})
    assert "'rded' is a method of RD3" in said("rded", {"sets": [made.key]})
    assert "cannot name imported sets" in said("M\nTT", {"sets": [made.key]})
    for again in (made.key, made.key[:12], made.key[:12].upper()):
        assert f"This is set {made.key[:12]} again" in said("MTT", {"sets": [made.key, again]})
    assert "imported sets need a name" in said("MTT", {"set": [made.key]}), "a slip"
    assert "imported sets need a name" in said(made.key[:12], {})
