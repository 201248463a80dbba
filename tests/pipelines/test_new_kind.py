"""A kind of recipe that RD3 does not have: declared, with a row in each table, it is planned, computed and exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from pipelines.engine.progress import plural
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import Plan, make_plan
from pipelines.grid.queue import SCHEDULING, Demand, RecipeQueue, Scheduling
from rd3 import perform, recipe
from rd3.campaign.estimates import Estimates
from rd3.campaign.runner import Ended, Runner
from rd3.datasets import Roots, open_dataset
from rd3.planning import forecast
from rd3.planning.cost import CPU_THREAD, Work
from rd3.planning.forecast import Forecast
from rd3.recipe import KINDS, Holds, Key, Recipe, SetRecipe, from_json, read_recipe, register_kind, to_json
from rd3.store import FolderStore
from rd3.study import Study, write_study
from tracking.ledger.ledger import Ledger
from tracking.runs.fields import FACTS, params, parent_facts, run_name


class BrightnessRecipe(Recipe):
    """The mean pixel of a synthetic set."""

    plural: ClassVar[str] = "brightnesses"
    holds: ClassVar[Holds] = "statistics"

    kind: Literal["brightness"] = "brightness"
    set: Key
    version: int = 1

    def parents(self) -> tuple[tuple[str, Key], ...]:
        return (("set", self.set),)

    def label(self) -> str:
        return f"brightness of {self.set[:8]}"


def measure(one: BrightnessRecipe, context: perform.Context) -> perform.Output:
    mean = float(context.load_set(one.set, one.classes).images.float().mean())
    (context.out / "brightness.json").write_text(json.dumps(mean))
    return {"mean": mean}, None


@pytest.fixture(autouse=True)
def new_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that a kind declares outside its class; the last two tables have defaults."""
    register_kind(BrightnessRecipe)
    monkeypatch.setitem(perform.PERFORM, BrightnessRecipe, measure)
    row = Forecast(work=lambda one, info, parent: Work(steps=parent(one.set).ipc), file_bytes=lambda *_: 20)
    monkeypatch.setitem(forecast.FORECASTS, BrightnessRecipe, row)
    monkeypatch.setitem(SCHEDULING, "brightness", Scheduling(rank=-1))
    monkeypatch.setitem(FACTS, BrightnessRecipe, lambda one, find: {"method": find("set", one.set).recipe["method"]})
    yield
    recipe._kinds.pop("brightness")


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(None, tmp_path)


@pytest.fixture
def pair(roots: Roots) -> tuple[SetRecipe, BrightnessRecipe]:
    """A set of random images, and its brightness."""
    digits = open_dataset("digits", roots)
    common = {
        "data": {"name": "digits", "fingerprint": digits.fingerprint},
        "classes": digits.info.classes,
        "resolution": digits.info.resolution,
    }
    chosen = SetRecipe(**common, method="random", version=1, settings={}, ipc=1, set_seed=0)
    return chosen, BrightnessRecipe(**common, set=chosen.key)


@pytest.fixture
def store(pair: tuple[SetRecipe, BrightnessRecipe], roots: Roots, tmp_path: Path) -> FolderStore:
    """Both, computed as `python -m rd3.run` does."""
    ended: list[Ended] = []
    runner = Runner(tmp_path / "store", roots, tmp_path / "work")
    assert runner.run([to_json(one) for one in pair], lambda news: ended.append(news), lambda: False)
    assert [one.status for one in ended if isinstance(one, Ended)] == ["done", "done"]
    return FolderStore(tmp_path / "store")


def test_it_is_computed_from_its_parent_and_stored(pair, store: FolderStore):
    chosen, brightness = pair
    assert store.names() == [("set", chosen.key), ("brightness", brightness.key)], "parents before children"
    entry = store.find("brightness", brightness.key)
    mean = json.loads((store.fetch("brightness", brightness.key) / "brightness.json").read_text())
    assert 0 < entry.result["mean"] == mean < 255


def test_its_json_gives_the_same_recipe(pair):
    assert from_json(to_json(pair[1])) == pair[1]
    assert read_recipe(pair[1].model_dump(mode="json")).key == pair[1].key


def plan(pair, ledger: Ledger, roots: Roots) -> Plan:
    infos = {"digits": open_dataset("digits", roots).info}
    expansion = Expansion({one.key: one for one in pair}, infos=infos)
    return make_plan(expansion, ledger, exists=lambda entry: True, verify=lambda entry: None)


def test_it_is_planned_priced_and_reused(pair, roots: Roots, tmp_path: Path):
    ledger, (_set, brightness) = Ledger(str(tmp_path / "artifacts")), pair
    first = plan(pair, ledger, roots)
    assert first.keys("run") == [one.key for one in pair]
    item = first.items[-1]
    assert item.cost_s == CPU_THREAD.start_s + CPU_THREAD.step_s and item.disk_bytes == forecast.FIXED + 20
    assert first.by_kind()["brightness"]["process_s"] == item.cost_s
    estimates = Estimates({one.key: one for one in pair}, lambda kind, key: None, lambda name: None, CPU_THREAD)
    assert estimates.planned(brightness.key) == item.cost_s and estimates.parts(brightness.key) == 1


def test_what_the_ledger_has_is_reused(pair, store: FolderStore, roots: Roots, tmp_path: Path):
    ledger = Ledger(str(tmp_path / "store"))
    assert plan(pair, ledger, roots).counts()["brightness"]["reuse"] == 1
    assert ledger.resolve_any(pair[1].key[:12]) == ("brightness", pair[1].key)


def test_it_is_queued_and_counted(pair):
    queue = RecipeQueue({one.key: one for one in pair}, demands=dict.fromkeys(KINDS, Demand(1.0)))
    assert queue.take(2).kind == "set" and queue.take(2) is None
    queue.finish(pair[0].key)
    assert queue.take(2) is pair[1]
    assert queue.counts()["brightness"]["running"] == 1 and plural("brightness") == "brightnesses"


def test_its_run_shows_its_fields_and_its_parents(pair, store: FolderStore):
    _set, brightness = pair
    facts = parent_facts(brightness, store.find)
    assert facts == {"method": "random"}
    shown = params(brightness, facts)
    assert (shown["set"], shown["dataset"], shown["method"]) == (pair[0].key[:12], "digits", "random")
    assert run_name(brightness, facts) == brightness.label()


def test_a_study_has_it_in_a_file_of_its_own(pair, store: FolderStore, tmp_path: Path):
    folder = tmp_path / "study"
    write_study(store, store.names(), folder, networks=True)
    assert (folder / "brightnesses" / f"{pair[1].key[:12]}.parquet").is_file()
    study = Study(folder, tmp_path / "scratch")
    assert study.names() == store.names()
    assert (study.fetch("brightness", pair[1].key) / "brightness.json").is_file()
