"""A set with its backbone and what is derived from it, computed as `python -m rd3.run` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import expand
from pipelines.grid.files import load_grid
from rd3.campaign.runner import Ended, Runner
from rd3.datasets import Roots, open_dataset
from rd3.recipe import BackboneRecipe, BackboneTraining, DerivedRecipe, Recipe, SetRecipe, to_json
from rd3.store import FolderStore
from rd3.testing import trial_recipes
from tracking.runs.fields import params, parent_facts, run_name


@pytest.fixture
def recipes(tmp_path: Path) -> list[Recipe]:
    """Of Minimax's set at IPC 2, with a backbone that is trained for one epoch."""
    digits = open_dataset("digits", Roots(None, tmp_path))
    backbone, derived, made = trial_recipes("minimax", digits, 2)
    assert isinstance(backbone, BackboneRecipe) and isinstance(derived, DerivedRecipe) and isinstance(made, SetRecipe)
    training = BackboneTraining(epochs=1, batch_size=256, lr=1e-3, ema=0.5)
    backbone = backbone.model_copy(update={"training": training})
    derived = derived.model_copy(update={"backbone": backbone.key})
    return [backbone, derived, made.model_copy(update={"backbones": (backbone.key,), "derived": (derived.key,)})]


def test_a_set_is_made_from_its_backbone_and_pays_for_what_is_derived(recipes: list[Recipe], tmp_path: Path):
    ended: list[Ended] = []
    runner = Runner(tmp_path / "store", Roots(None, tmp_path), tmp_path / "work")
    assert runner.run([to_json(one) for one in recipes], lambda news: ended.append(news), lambda: False)
    store = FolderStore(tmp_path / "store")
    assert [kind for kind, _key in store.names()] == ["backbone", "derived", "set"]
    backbone, derived, made = (store.find(one.kind, one.key) for one in recipes)
    assert backbone.result["epochs"] == 1
    own = made.result["generate_process_s"] + made.result["decode_process_s"]
    assert made.result["generation_process_s"] == pytest.approx(own + derived.result["process_s"])
    assert made.result["preparation_process_s"] == derived.result["process_s"]
    assert made.result["count"] == 20
    facts = parent_facts(recipes[-1], store.find)
    shown = params(recipes[-1], facts)
    assert facts == {"backbone": "dit, a small one trained here"}
    assert shown["backbones"] == recipes[0].key[:12] and run_name(recipes[0], {}) == "backbone dit digits"


def test_a_grid_shares_backbones_and_blocks_what_needs_an_import(tmp_path: Path):
    text = "methods: [minimax, mgd3]\ndatasets: [digits, imagenette]\nipc: [1, 5]\nteacher: resnet18_w16\n"
    (tmp_path / "grid.yaml").write_text("name: mine\n" + text)
    found = expand(load_grid(tmp_path / "grid.yaml"), Catalog(Roots(None, tmp_path)))
    backbones = {key: one for key, one in found.recipes.items() if one.kind == "backbone"}
    assert sorted(one.data.name for one in backbones.values()) == ["digits", "imagenette"]
    [foreign] = [key for key, one in backbones.items() if one.data.name == "imagenette"]
    assert "rd3 diffusion import facebook/DiT-XL-2-256 --dataset imagenette" in found.imports[foreign]
    derived = [one for one in found.recipes.values() if one.kind == "derived" and one.data.name == "digits"]
    assert sorted(one.step for one in derived) == ["minimax", "prototypes", "prototypes"], "fine-tuning has no IPC"
