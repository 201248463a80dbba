"""The same work from a notebook as from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import rd3
from pipelines import Workspace
from pipelines.cli import app
from pipelines.grid.located_yaml import GridErrors
from pipelines.workspace import LoadedGrid
from rd3.errors import BadValue, DataMissing, UnknownName
from rd3.methods import METHODS

GRID = {
    "name": "tiny",
    "methods": ["random"],
    "datasets": ["digits"],
    "ipc": [1],
    "teacher": "resnet18_w16",
    "protocols": [{"rd3-reduced": {"labels": "hard", "epochs": 1}}],
    "students": ["convnet"],
    "student_seeds": [0, 1],
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "home"))
    return Workspace()


def test_a_mapping_is_the_grid_that_its_file_is(work: Workspace, tmp_path: Path):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(GRID))
    from_file, from_mapping = work.grid(file), work.grid(GRID)
    assert list(from_file.expansion.recipes) == list(from_mapping.expansion.recipes)
    assert from_mapping.name == "tiny"
    shown = CliRunner().invoke(app, ["plan", str(file), "--json"])
    assert json.loads(shown.stdout)["totals"] == from_mapping.plan().totals() == {**dict.fromkeys(
        ("reuse", "blocked", "unsupported"), 0), "run": 3}  # fmt: skip


def test_mistakes_come_at_once(work: Workspace):
    with pytest.raises(GridErrors, match="has 2 mistakes"):
        work.grid({**GRID, "methods": ["randm"], "ipc": [0]})


def test_counts_below_one_are_refused(work: Workspace):
    grid = work.grid(GRID)
    with pytest.raises(BadValue, match="devices is -1"):
        grid.plan(devices=-1)
    with pytest.raises(BadValue, match="max_concurrent is 0"):
        grid.run(max_concurrent=0)
    for share in (0, 2):
        with pytest.raises(BadValue, match=f"gpu_share is {share}"):
            grid.run(gpu_share=share)


def test_addresses_can_be_given(tmp_path: Path):
    work = Workspace(home=tmp_path / "a", data=tmp_path / "b", tracking_uri="http://server", artifacts="s3://bucket/x")
    here = work.session
    assert (here.home, here.roots.data) == (tmp_path / "a", tmp_path / "b")
    assert (here.tracking_uri, here.artifacts) == ("http://server", "s3://bucket/x")


def test_what_the_ledger_lacks_is_said(work: Workspace):
    with pytest.raises(UnknownName, match="has no set 3fa9"):
        work.open_set("3fa9")
    with pytest.raises(DataMissing, match=r"no teacher resnet18_w16 of digits\. Fix: rd3 teacher train digits"):
        work.teacher("digits", "resnet18_w16")


def test_the_names_load_no_engine_before_they_are_used():
    code = "import sys, pipelines; assert not {'ray', 'mlflow', 'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_run_results_report_and_back_to_tensors(work: Workspace, tmp_path: Path):
    grid = work.grid(GRID)
    assert (grid.results().status == "missing").all()
    outcome = grid.run()
    assert (len(outcome.done), outcome.failed) == (3, [])
    assert grid.run().done == [] and grid.plan().totals()["reuse"] == 3
    results = grid.results()
    assert list(results.student_seed) == [0, 1] and (results.status == "done").all()
    assert {path.name for path in grid.report(tmp_path / "report").values()} >= {"report.md", "report.html"}
    made = work.open_set(results.set[0][:8])
    assert made.images.shape == (10, 3, 32, 32)
    data = work.dataset("digits")
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval()
    options = {"student": "convnet", "epochs": 1, "test_epochs": [], "allow_chance": True}
    found = rd3.evaluate(made.images, made.labels, data, teacher, **options)
    assert found.tested == len(data.labels("test"))


def test_a_run_refuses_what_the_command_line_refuses(work: Workspace, monkeypatch: pytest.MonkeyPatch):
    grid = work.grid(GRID)
    for more in ({"address": "auto"}, {"max_concurrent": 2}):
        with pytest.raises(BadValue, match=r"one recipe runs at a time\. Fix: leave out address and max_concurrent"):
            grid.run(local=True, **more)
    monkeypatch.setattr("pipelines.settings._unwritable", lambda folder: f"no permission to write to {folder}")
    with pytest.raises(BadValue, match=r"RD3's home .* cannot be written: no permission"):
        grid.run(local=True)


METHOD = """
from rd3.methods import Cost, Method, register_method
@register_method("dimmed", version={version})
class Dimmed(Method):
    def make(self, block, ctx):
        with ctx.phase("select"):
            rows = [int(ctx.class_indices(label)[k]) for label, k in block.members]
            return ctx.dataset.images(ctx.split, rows).float() / 255 * {factor}
    def cost(self, recipe, info, forward):
        return Cost()
"""


def test_results_of_other_code_are_named_in_plan_and_report(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(METHODS, "_things", dict(METHODS._things))
    said = "computed by other code of method dimmed than is installed now; raise its version to compute it again"

    def installed(version: int, factor: float) -> LoadedGrid:
        """The grid in a new process, in which no other code was registered before."""
        METHODS._things.pop("dimmed", None)
        exec(METHOD.format(version=version, factor=factor), {"__name__": "__main__"})
        return work.grid({**GRID, "methods": ["dimmed", "random"], "student_seeds": [0]})

    first = installed(1, 1.0)
    first.run(local=True)
    entries = [first.workspace.session.ledger.find("set", key) for key in first.results()["set"]]
    assert [sorted(entry.made.get("own_code", {}).get("method", {})) for entry in entries] == [["dimmed"], []]
    again = installed(1, 1.0)
    assert again.plan().totals()["reuse"] == 4  # without a warning, which is an error in tests
    assert "other code" not in again.report(tmp_path / "again")["report.md"].read_text()

    edited = installed(1, 0.5)
    assert edited.results()["set"].tolist() == first.results()["set"].tolist(), "the hash is in no key"
    with pytest.warns(UserWarning, match=f"results of grid tiny are reused, {said}"):
        plan = edited.plan()
    assert [(item.kind, item.status) for item in plan.items if item.reason] == [("set", "reuse")]
    assert said in edited.report(tmp_path / "edited")["report.md"].read_text()

    raised = installed(2, 0.5)
    assert raised.plan().totals() == {"reuse": 2, "run": 2, "blocked": 0, "unsupported": 0}
