"""Two ledgers never take each other's runs for their own, even at one path."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rd3.errors import DataCorrupt
from rd3.recipe import Data, SetRecipe
from tracking.ledger.identity import identity
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.runs import Tracker


def test_a_ledger_keeps_its_identity_where_it_is_and_a_copy_gets_another(tmp_path: Path):
    home, copied, moved = (tmp_path / name for name in ("home", "copied", "moved"))
    assert identity(open_objects(str(home)), create=False) == ""
    assert not home.exists()
    own = identity(open_objects(str(home)), create=True)
    assert own
    assert [identity(open_objects(str(home)), create=create) for create in (True, False)] == [own, own]
    shutil.copytree(home, copied)
    assert identity(open_objects(str(copied)), create=False) == ""
    assert identity(open_objects(str(copied)), create=True) not in ("", own)
    home.rename(moved)
    assert identity(open_objects(str(moved)), create=False) == own


@pytest.mark.parametrize("damaged", ["{", "{}", "[]", "null"])
def test_a_damaged_identity_is_said(tmp_path: Path, damaged: str):
    (tmp_path / "ledger.json").write_text(damaged)
    with pytest.raises(DataCorrupt, match=r"Identity .*/ledger.json cannot be read\. Fix: delete that file"):
        identity(open_objects(str(tmp_path)), create=True)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Tracker, Tracker]:
    """Drivers of two machines whose ledgers have one path, on one tracking server."""
    place = Place(f"sqlite:///{tmp_path}/mlflow.db", "/home/user/.rd3/artifacts", tmp_path)
    return Tracker(replace(place, ledger_id="a", lease="1")), Tracker(replace(place, ledger_id="b", lease="2"))


def test_drivers_of_two_machines_leave_each_others_runs_alone(machines: tuple[Tracker, Tracker]):
    one, other = machines
    data = Data(name="digits", fingerprint="f" * 64)
    recipe = SetRecipe(
        method="random", version=1, settings={}, ipc=1, set_seed=0, data=data, classes="c" * 64, resolution=32
    )
    experiment_id = one.experiment("rd3")
    grid = one.grid_run(experiment_id, "demo", grid_yaml="")
    run = one.begin(recipe, {}, experiment_id=experiment_id)
    assert other.close_dead_runs(experiment_id, "its driver died") == 0
    assert other.grid_run(experiment_id, "demo", grid_yaml="") != grid
    second = other.begin(recipe, {}, experiment_id=experiment_id)
    assert second.run_id != run.run_id
    shown = one.client.get_run(run.run_id)
    assert (shown.info.status, shown.data.tags["rd3.lease"], shown.data.tags["rd3.ledger_id"]) == ("RUNNING", "1", "a")
    assert one.begin(recipe, {}, experiment_id=experiment_id).run_id == run.run_id
    assert one.find_grid("rd3", "demo") == grid
    assert one.close_dead_runs(experiment_id, "its driver died") == 2
    assert other.client.get_run(second.run_id).info.status == "RUNNING"


def test_runs_of_earlier_versions_belong_to_the_ledger_at_their_path(machines: tuple[Tracker, Tracker]):
    one, _other = machines
    experiment_id = one.experiment("rd3")
    old = Tracker(replace(one.place, ledger_id="", lease=""))
    grid = old.grid_run(experiment_id, "demo", grid_yaml="")
    assert "rd3.ledger_id" not in old.client.get_run(grid).data.tags
    assert one.grid_run(experiment_id, "demo", grid_yaml="") == grid
