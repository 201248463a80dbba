"""A tiny real grid on Ray, ledger and MLflow: made, reused, mended, exclusive, and brought in from elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.cluster import ray as cluster
from pipelines.engine import trial_log
from pipelines.engine.status import grid_status
from pipelines.engine.workers import ThisProcess
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import plan_session
from pipelines.transfer.results import export_results, import_results
from rd3.datasets import dataset_info
from rd3.errors import DataCorrupt
from rd3.perform import perform
from rd3.planning.sets import largest_sets, plan_set
from rd3.recipe import to_json
from tracking.ledger.ledger import Ledger
from tracking.runs.runs import Tracker
from tracking.store import TrackedStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def ray_here(home: Path) -> Iterator[None]:
    """One Ray for the whole module: a run uses the Ray that is there."""
    with cluster.ray_cluster():
        yield


@pytest.fixture(scope="module")
def made(tiny: ModuleType, home: Path, ray_here: None) -> Any:
    """The outcome of the first run."""
    return tiny.run(home, evaluations=2, epochs=2, sets=2)


def _runs(tiny: ModuleType, home: Path) -> dict[str, Any]:
    """MLflow's runs by recipe key; the grid's own under ``grid``."""
    client = Tracker(tiny.session_in(home)).client
    found = client.search_runs([client.get_experiment_by_name("rd3").experiment_id])
    keyed = {run.data.tags.get("rd3.key", "grid"): run for run in found}
    assert len(keyed) == len(found), "one run a recipe"
    return keyed


def _events(home: Path) -> list[str]:
    return sorted(f"{event['kind']} {event['event']}" for event in trial_log.events(home))


def test_everything_is_made_tracked_and_cleaned_up(tiny: ModuleType, home: Path, made: Any):
    session = tiny.session_in(home)
    expansion = tiny.tiny(session, evaluations=2, epochs=2, sets=2)
    assert (made.exit_code, made.failed, made.reused) == (0, [], [])
    assert set(made.done) == set(expansion.recipes)
    ledger = Ledger(session.artifacts)
    runs = _runs(tiny, home)
    assert set(runs) == {*expansion.recipes, "grid"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for key, recipe in expansion.recipes.items():
        assert ledger.find(recipe.kind, key).run_id == runs[key].info.run_id
        assert runs[key].data.tags["mlflow.parentRunId"] == runs["grid"].info.run_id
    assert not list((home / "work").glob("*/*"))
    assert not list((home / "ray").glob("*"))
    assert _events(home) == sorted(
        f"{recipe.kind} {event}" for recipe in expansion.recipes.values() for event in ("start", "made", "done")
    )
    status = grid_status(expansion, ledger, home)
    assert {row["done"] for row in status.counts.values()} == {1, 2, 4}
    assert (status.running, status.failed) == ([], [])


def test_without_ray_the_results_are_the_same(
    tiny: ModuleType, home: Path, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.engine.workers.ray_cluster", None)
    outcome = tiny.run(tmp_path, evaluations=2, epochs=2, sets=2, workers=ThisProcess())
    assert (outcome.exit_code, set(outcome.done)) == (0, set(made.done))
    assert {run.info.status for run in _runs(tiny, tmp_path).values()} == {"FINISHED"}
    assert not list((tmp_path / "work").glob("*/*"))
    there, here = (Ledger(tiny.session_in(folder).artifacts) for folder in (home, tmp_path))
    for recipe in tiny.tiny(tiny.session_in(home), evaluations=2, epochs=2, sets=2).recipes.values():
        one, other = (ledger.find(recipe.kind, recipe.key) for ledger in (there, here))
        assert one.content == other.content
        for name in one.result:
            assert name.endswith(("_s", "_mib")) or one.result[name] == other.result[name], name
    again = tiny.run(tmp_path, evaluations=2, epochs=2, sets=2, workers=ThisProcess())
    assert (set(again.reused), again.done) == (set(made.done), [])


def test_a_second_run_makes_nothing(tiny: ModuleType, home: Path, made: Any):
    before = _events(home)
    again = tiny.run(home, evaluations=2, epochs=2, sets=2)
    assert (set(again.reused), again.done, again.exit_code) == (set(made.done), [], 0)
    assert _events(home) == before


def test_a_set_that_is_damaged_after_planning_is_made_again_and_its_children_wait(
    tiny: ModuleType, home: Path, made: Any, ray_here: None
):
    session = tiny.session_in(home)
    ledger = Ledger(session.artifacts)
    expansion = tiny.tiny(session, evaluations=4, epochs=2, sets=1)  # two more students of a set that is there
    plan = plan_session(expansion, session)
    keys = plan.keys("run")
    assert len(keys) == 2
    entry = ledger.find("set", expansion.recipes[keys[0]].set)
    folder = Path(entry.artifact.removeprefix("file://"))
    victim = max(folder.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    victim.write_bytes(victim.read_bytes()[:-1])
    outcome = tiny.execute(expansion, plan, session, view=False, max_concurrent=2)
    assert outcome.failed == []
    assert set(outcome.done) == {*keys, entry.key}
    assert ledger.find("set", entry.key).content == entry.content
    assert [event["event"] for event in trial_log.events(home, entry.key)] == [
        "start", "made", "done", "forgotten", "start", "made", "done"
    ]  # fmt: skip


def test_a_recipe_that_cannot_be_made_does_not_stop_the_others(tiny: ModuleType, home: Path, made: Any, ray_here: None):
    session = tiny.session_in(home)
    expansion = tiny.tiny(session, evaluations=1, epochs=1, sets=3, timing="exclusive")
    *others, made_badly, evaluated = expansion.recipes.values()
    broken = type(made_badly)(**{**made_badly.model_dump(), "settings": {"no_such_setting": 1}})
    lost = type(evaluated)(**{**evaluated.model_dump(), "set": broken.key})
    expansion.recipes = {recipe.key: recipe for recipe in (*others, broken, lost)}
    plan = plan_session(expansion, session)
    outcome = tiny.execute(expansion, plan, session, view=False)
    assert outcome.exit_code == 3
    assert [(failure.key, failure.status) for failure in outcome.failed] == [
        (broken.key, "failed"),
        (lost.key, "blocked"),
    ]
    assert "no_such_setting" in outcome.failed[0].reason
    assert "no_such_setting" in outcome.failed[1].reason
    assert len(outcome.done) == 2
    runs = _runs(tiny, home)
    assert runs[broken.key].info.status == "FAILED"
    assert "no_such_setting" in runs[broken.key].data.tags["rd3.reason"]
    assert runs["grid"].info.status == "FAILED"


def test_a_set_in_shares_and_one_out_of_a_larger_one(tiny: ModuleType, home: Path, made: Any, ray_here: None):
    import torch

    session = tiny.session_in(home)
    ledger = Ledger(session.artifacts)
    teacher, *_others = tiny.tiny(session).recipes.values()
    values = {"iterations": 2, "batch_classes": 5}
    sets = [
        plan_set(
            "sre2l", dataset_info("digits"), teacher.data, ipc, values, teacher="", teacher_of=lambda role: teacher
        ).recipes(0)[-1]
        for ipc in (1, 3)
    ]
    small, large = sets
    expansion = Expansion(
        recipes={recipe.key: recipe for recipe in (teacher, small, large)}, infos={"digits": dataset_info("digits")}
    )
    expansion.larger_sets = largest_sets(sets, dataset_info)
    assert expansion.larger_sets == {small.key: large.key}
    plan = plan_session(expansion, session)
    outcome = tiny.execute(expansion, plan, session, view=False, shares=2)
    assert (outcome.failed, set(outcome.done)) == ([], {large.key, small.key})
    assert not list(ledger.objects.names("blocks/"))
    store, before = TrackedStore(session), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for recipe in sets:
            alone = perform(recipe, store, session.roots, home / "alone" / recipe.key)
            assert ledger.find("set", recipe.key).content == alone.content
    finally:
        torch.set_num_threads(before)
    spent = {recipe.ipc: ledger.find("set", recipe.key).result["generation_process_s"] for recipe in sets}
    assert 0 < spent[1] < spent[3]


def test_results_go_to_another_home_without_the_way_to_this_one(
    tiny: ModuleType, home: Path, made: Any, tmp_path: Path
):
    session = tiny.session_in(home)
    recipes = tiny.tiny(session, evaluations=2, epochs=2, sets=2).recipes
    assert export_results(recipes.values(), tmp_path / "out", session) == 6
    assert export_results(recipes.values(), tmp_path / "out", session) == 0
    told = "".join(path.read_text() for path in (tmp_path / "out").rglob("by-key/*/*.json"))
    assert str(home) not in told
    assert not (tmp_path / "out" / "by-key" / "teacher").exists()
    imported = import_results(tmp_path / "out", tiny.session_in(tmp_path / "other"))
    assert sorted(one.kind for one in imported if one.new) == ["evaluation"] * 4 + ["set"] * 2


def test_results_made_without_the_engine_come_in_once(tiny: ModuleType, home: Path, made: Any, tmp_path: Path):
    session = tiny.session_in(home)
    expansion = tiny.tiny(session, evaluations=1, epochs=1, sets=6)
    recipe = list(expansion.recipes.values())[-2]
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    command = [sys.executable, "-m", "rd3.run", tmp_path / "recipe.json", "--store", tmp_path / "store"]
    subprocess.run([*command, "--out", tmp_path / "out", "--home", home], check=True, capture_output=True)
    (first,) = import_results(tmp_path / "store", session)
    (again,) = import_results(tmp_path / "store", session)
    assert (first.key, first.new, again.key, again.new) == (recipe.key, True, recipe.key, False)
    assert Ledger(session.artifacts).find("set", recipe.key).run_id is not None
    path = tmp_path / "store" / "by-key" / "set" / f"{recipe.key}.json"
    path.rename(path.with_name(f"{'0' * 64}.json"))
    with pytest.raises(DataCorrupt, match="contains set"):
        import_results(tmp_path / "store", session)
