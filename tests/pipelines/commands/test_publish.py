"""From a run to its pages: MLflow's page of a grid that ran nothing itself, and the leaderboard of several grids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_grid import session_in

from rd3.recipe import from_json
from tracking.runs.runs import Tracker

Run = Callable[..., tuple[int, str, str]]
GRID = {
    "description": "Random digits <b>, hard labels.",
    "methods": ["random"],
    "datasets": ["digits"],
    "ipc": [1],
    "teacher": "resnet18_w16",
    "students": ["convnet_w32"],
    "protocols": [{"rd3-reduced": {"epochs": 1, "labels": "hard"}}],
    "student_seeds": [0, 1],
}


def test_a_grid_that_reuses_everything_has_its_pages_as_well(
    rd3: Run, home: Path, tmp_path: Path, empty_database: Path
) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    files = {name: tmp_path / f"{name}.yaml" for name in ("first", "second")}
    for name, file in files.items():
        file.write_text(yaml.safe_dump({"name": name} | GRID))
    assert rd3("run", files["first"], "--local")[0] == 0
    code, out, _err = rd3("run", files["second"], "--local")
    assert code == 0 and "0 completed, 3 reused" in out

    code, out, _err = rd3("report", files["second"])
    assert code == 0
    [key] = re.findall(r"viewStateShareKey=(\S+)", out)
    tracker = Tracker(session_in(home).with_identity())
    run_id = tracker.find_grid("rd3", "second")
    assert run_id is not None
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    tags = tracker.client.get_experiment(run.info.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    shown = tracker.client.search_runs([run.info.experiment_id], view["searchFilter"])
    names = sorted(one.info.run_name for one in shown)
    assert [name.startswith(f"random digits ipc1 seed0.{seed}") for seed, name in enumerate(names)] == [True, True]
    assert {one.data.tags["mlflow.source.name"] for one in shown} == {"grid first"}

    site = tmp_path / "site"
    before = site / "first" / "recipes" / f"01-set-{'0' * 12}.json"  # of the grid before it was edited
    before.parent.mkdir(parents=True)
    before.write_text("{}")
    assert rd3("publish", *files.values(), "--out", site)[0] == 0
    page = (site / "index.html").read_text()
    assert page.count("<td>verified</td>") == 2 and "<b>," not in page and "&lt;b&gt;" in page
    for name in files:
        assert f'href="{name}/report.html"' in page and (site / name / "report.html").is_file()
        recipes = [from_json(file.read_text()) for file in sorted((site / name / "recipes").glob("*.json"))]
        assert [recipe.kind for recipe in recipes] == ["set", "evaluation", "evaluation"]
        assert yaml.safe_load((site / name / "grid.yaml").read_text())["name"] == name


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_several_grids_run_in_turn_with_one_start_of_ray(
    rd3: Run, home: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    files = {name: tmp_path / f"{name}.yaml" for name in ("first", "second", "third")}
    for seed, (name, file) in enumerate(files.items()):
        file.write_text(yaml.safe_dump({"name": name} | GRID | {"student_seeds": [seed % 2]}))
    starts, start = [], ray.init
    monkeypatch.setattr(ray, "init", lambda *words, **options: starts.append(options) or start(*words, **options))
    code, out, err = rd3("run", *files.values(), "--concurrent", "1")
    assert code == 0, err
    assert re.findall(r"grid (\w+)$|(\d+) completed, (\d+) reused", out, re.MULTILINE) == [
        ("first", "", ""), ("", "2", "0"), ("second", "", ""), ("", "1", "1"), ("third", "", ""), ("", "0", "2")
    ]  # fmt: skip
    assert len(starts) == 1 and not ray.is_initialized()

    files["third"].write_text("methods: [randm]")
    code, _out, err = rd3("run", *files.values())
    assert code == 2 and "randm" in err and len(starts) == 1, "a mistake in the last file is found before all runs"


def test_two_grids_of_one_name_are_refused(rd3: Run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "grid.yaml").write_text(yaml.safe_dump({"name": "same"} | GRID))
    code, _out, err = rd3(
        "publish", tmp_path / "a" / "grid.yaml", tmp_path / "b" / "grid.yaml", "--out", tmp_path / "s"
    )
    assert code == 2 and "Two of these grids have the same name." in err
    assert not (tmp_path / "s").exists()
