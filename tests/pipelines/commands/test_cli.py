"""The command line: what programs read from it, and how it says no."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_recipes import a_set

from pipelines.commands._show import parse_fields, show_note, show_table
from pipelines.commands.grid import ui_line
from pipelines.engine.execute import Failure, Outcome
from pipelines.settings import Session
from rd3 import methods
from rd3.errors import BadValue
from rd3.inputs.notes import Note
from rd3.methods import METHODS
from rd3.parts import Collector
from rd3.recipe import EvaluationRecipe, Recipe, from_json
from rd3.store import Entry, FolderStore, sha256_files
from tracking.ledger.ledger import Ledger

Run = Callable[..., tuple[int, str, str]]


def state(home: Path) -> set[str]:
    """Everything that RD3 wrote, but for decoded data."""
    return {path.name for path in home.rglob("*") if path.is_file() and path.parent.name != "data"}


def test_version_is_that_of_the_package(rd3):
    assert rd3("--version") == (0, f"rd3 {importlib.metadata.version('rd3')}\n", "")


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("methods", {"random", "rded", "sre2l"}),
        ("datasets", {"digits", "cifar10", "imagenette", "imagenette-224"}),
        ("networks", {"resnet18", "resnet18_w16", "convnet", "convnet_in", "vit_b_16"}),
        ("protocols", {"rd3", "rd3-reduced"}),
        ("losses", {"kl", "ce", "mse_gt", "crld"}),
        ("grids", {"demo", "cifar10", "sensitivity"}),
        ("sweeps", {"demo"}),
    ],
)
def test_lists_are_arrays_of_objects_with_a_name(rd3, kind, known):
    code, out, _err = rd3("list", kind, "--json")
    assert code == 0
    assert known <= {row["name"] for row in json.loads(out)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from rd3.methods import no_such_name\n", "line 1: ImportError: cannot import name 'no_such_name'"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_one_broken_method_is_named_and_the_others_go_on(rd3, home, tmp_path, monkeypatch, text, reason):
    METHODS.names()  # loaded before what is loaded is changed
    (tmp_path / "careless.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    for name, value in (("_things", dict(METHODS._things)), ("_broken", {}), ("_loaded", False)):
        monkeypatch.setattr(METHODS, name, value)
    code, out, _err = rd3("list", "methods", "--json")
    rows = {row["name"]: row["summary"] for row in json.loads(out)}
    assert code == 0 and rows["careless"].startswith(f"broken: rd3/methods/careless.py: {reason}")
    assert {"random", "rded", "sre2l"} < set(rows)
    assert rd3("plan", "demo")[0] == 0
    code, out, err = rd3("method", "test", "careless")
    assert (code, out) == (2, "")
    assert err.startswith(f"UnknownName: Method 'careless' fails to import: rd3/methods/careless.py: {reason}")
    assert state(home) == set()


def test_an_unknown_kind_and_an_unknown_grid_suggest_another(rd3):
    assert rd3("list", "method")[2].count("did you mean 'methods'?") == 1
    code, _out, err = rd3("plan", "dmo")
    assert code == 2
    assert "UnknownName: There is no grid 'dmo'" in err
    assert "Fix: did you mean 'demo'?" in err


def test_every_mistake_of_a_grid_is_said_and_nothing_is_written(rd3, home, tmp_path):
    grid = tmp_path / "bad.yaml"
    grid.write_text("name: bad\nmethods: [randm]\ndatasets: [digits]\nipc: [0]\nteacher: resnet18\nsudents: [x]\n")
    for command in ("plan", "run", "report", "status"):
        code, _out, err = rd3(command, str(grid))
        assert code == 2
        assert all(word in err for word in ("did you mean 'random'", "ipc", "did you mean 'students'"))
    assert state(home) == set()


def test_a_tracking_server_that_is_down_is_named_soon_and_nothing_is_written(rd3, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    code, _out, err = rd3("run", "demo")
    assert code == 2
    assert "http://127.0.0.1:9" in err
    assert time.monotonic() - start < 60  # the client's own default is minutes
    assert state(home) == set()


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that are right, and write to the tracking server; what takes long in them is not reached."""

    def never(*_words: object, **_options: object) -> None:
        raise AssertionError("work was begun")

    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(10)}, tmp_path / "mine.safetensors")
    for name in ("rd3.synthetic_set.import_tensors", "rd3.teacher.import_weights", "pipelines.transfer.results._bring"):
        monkeypatch.setattr(name, never)
    (tmp_path / "store/by-key/set").mkdir(parents=True)
    (tmp_path / "store/by-key/set/0.json").touch()
    return [
        ("run", "demo"),
        ("distill", "random", "--dataset", "digits", "--ipc", "1"),
        ("teacher", "train", "digits", "--role", "convnet"),
        ("set", "import", str(tmp_path / "mine.safetensors"), "--dataset", "digits"),
        ("teacher", "import", str(tmp_path / "mine.safetensors"), "--dataset", "digits"),
        ("import-results", str(tmp_path / "store")),
        ("data", "pull", "cifar10"),
        ("artifacts", "gc"),
        ("artifacts", "rebuild"),
    ]


def test_a_start_that_there_is_not_is_said_before_data_is_opened(rd3, home, tmp_path):
    grid = tmp_path / "bad.yaml"
    grid.write_text("methods: [{sre2l: {init: nosuch}}]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\n")
    for command in ("plan", "run"):
        code, _out, err = rd3(command, str(grid))
        assert (code, "methods[0].sre2l (line 1): There is no start 'nosuch'." in err) == (2, True)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def refused(rd3: Run, words: tuple[str, ...], uri: str) -> str:
    """What a command says of a server that is away, within seconds; MLflow's own client takes a minute."""
    start = time.monotonic()
    code, _out, err = rd3(*words)
    assert time.monotonic() - start < 20, words
    assert (code, err.count("\n")) == (2, 2), words  # a sentence and a fix
    assert re.match(rf"Tracking(Error|Unavailable): The tracking server {uri} does not respond", err), err
    return err


def test_every_command_that_writes_looks_at_the_tracking_server_first(rd3, home, writers, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for words in writers:
        assert "Connection refused" in refused(rd3, words, "http://127.0.0.1:9")
    assert state(home) == set()


@pytest.mark.parametrize("command", ["run", "set", "teacher", "import-results"])
def test_a_tracking_server_that_accepts_and_says_nothing(rd3, home, writers, monkeypatch, command):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        refused(rd3, next(words for words in reversed(writers) if words[0] == command), uri)
    assert state(home) == set()


@pytest.mark.parametrize(
    ("artifact", "asks"), [("file:///a", False), ("s3://b/c", False), ("mlflow-artifacts:/1/artifacts", True)]
)
def test_a_plan_looks_at_the_tracking_server_where_that_keeps_the_files(
    rd3, home, tmp_path, monkeypatch, artifact, asks
):
    assert rd3("plan", "demo", "--recipes", str(tmp_path / "recipes"))[0] == 0
    paths = list((tmp_path / "recipes").glob("*-evaluation-*.json"))
    for recipe in map(from_json, (path.read_text() for path in paths)):
        plain = recipe.model_dump(mode="json")
        Ledger(str(home / "artifacts")).add(
            Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result={}, artifact=artifact, files={"f": "0"})
        )
    there = state(home)
    monkeypatch.setattr("tracking.runs.artifacts.exists", lambda *_words: True)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        if asks:
            refused(rd3, ("run", "demo"), uri)
        else:
            assert rd3("plan", "demo")[0] == 0
    assert state(home) == there


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("http://me:hunter2@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql+psycopg2://me:hunter2@127.0.0.1:9/mlflow", "PGPASSFILE"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(rd3, home, monkeypatch, uri, fix):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (("run", "demo"), ("artifacts", "verify"), ("doctor",)):
        code, out, err = rd3(*command)
        assert (code, fix in err, "hunter2" in out + err) == (2, True, False)
    assert state(home) == set()


def test_a_ledger_that_cannot_be_read_is_said(rd3, home, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("RD3_ARTIFACTS", str(tmp_path / "a_file"))
    code, _out, err = rd3("run", "demo")
    assert code == 2
    assert "StoreError" in err


def test_a_plan_as_json_and_its_recipes(rd3, home, tmp_path):
    code, out, _err = rd3("plan", "demo", "--json", "--recipes", str(tmp_path / "recipes"))
    plan = json.loads(out)
    assert code == 0
    assert plan["totals"] == {"reuse": 0, "run": 19, "blocked": 0, "unsupported": 0}
    assert len(list((tmp_path / "recipes").iterdir())) == 19


def test_recipes_run_elsewhere_with_what_they_are_made_from(rd3, home, tmp_path):
    code, _out, err = rd3("distill", "random", "--dataset", "digits", "--ipc", "1")
    assert code == 0, err
    (tmp_path / "hard.yaml").write_text(
        "methods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nstudent_seeds: [0]\n"
        "protocol: {labels: hard, epochs: 1}\n"
    )
    recipes, store = tmp_path / "recipes", tmp_path / "store"
    code, out, err = rd3("plan", str(tmp_path / "hard.yaml"), "--recipes", str(recipes), "--store", str(store))
    assert code == 0, err
    [only] = recipes.iterdir()
    assert only.name.startswith("1-evaluation-") and f"1 recipes written to {recipes}" in out
    command = [sys.executable, "-m", "rd3.run", only, "--store", store, "--out", tmp_path / "out", "--home", home]
    subprocess.run(command, check=True, capture_output=True)
    code, out, _err = rd3("import-results", str(store))
    assert code == 0 and "evaluation" in out
    code, out, _err = rd3("plan", str(tmp_path / "hard.yaml"), "--json")
    assert json.loads(out)["totals"]["run"] == 0
    code, _out, err = rd3("plan", "demo", "--store", str(store))
    assert code == 2 and "--store works only with --recipes" in err


def test_results_that_came_back_in_parts_are_imported_and_what_is_lacking_is_named(rd3, home, tmp_path):
    store, out = FolderStore(tmp_path / "store"), tmp_path / "out"
    for seed in range(3):
        (tmp_path / f"{seed}").mkdir()
        (tmp_path / f"{seed}" / "pixels").write_bytes(bytes([seed]) * 5000)
        recipe, files = a_set(seed), sha256_files(tmp_path / f"{seed}")
        plain = recipe.model_dump(mode="json")
        store.put(Entry(kind="set", key=recipe.key, recipe=plain, result={}, files=files), tmp_path / f"{seed}")
    assert Collector(store.root, out, part_bytes=9_000, shard_bytes=4_000).collect() == 3
    code, printed, err = rd3("import-results", str(out))
    assert code == 0, err
    assert all(f"{a_set(seed).key[:12]}" in printed for seed in range(3))
    (out / "results-1.zip").unlink()
    code, printed, _err = rd3("import-results", str(out))
    assert code == 3
    assert "not imported: its file pixels is missing or incomplete" in " ".join(printed.split())
    assert len(list((home / "artifacts" / "by-key" / "set").iterdir())) == 3


LOOKING = [
    ("status", "demo"),
    ("set", "list"),
    ("teacher", "list"),
    ("list", "datasets"),
    ("list", "protocols"),
    ("data", "doctor"),
    ("artifacts", "verify"),
]


def test_a_protocol_may_have_its_epochs_by_network(rd3, home):
    (home / "presets").mkdir(parents=True)
    (home / "presets" / "mine.yaml").write_text(
        "name: mine\nsource: a test\nreduces: rd3\nall: {batch_size: 10, zeta: 1, augmentation: []}\n"
        "same_network: {epochs: 30}\nother_network: {epochs: 60}\n"
    )
    code, out, err = rd3("list", "protocols", "--json")
    assert code == 0, err
    [mine] = [row for row in json.loads(out) if row["name"] == "mine"]
    assert mine["epochs"] == "30 (same network as the teacher), 60 (another)"


def test_rules_and_what_is_missing_are_listed(rd3):
    _code, out, _err = rd3("list", "protocols", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["minimax-hard"]["epochs"] == "200, 300, 500, 600, 1000, 1300, 1500, 2000, 3000 (by rules)"
    assert rows["rded"]["epochs"] == 300 and rows["rded"]["incomplete"] == ""
    missing = "logits of several teachers weighted by the softmax of their accuracies over 10; batch statistics of"
    assert rows["cvdd"]["incomplete"].startswith(missing)


def test_data_doctor_fits_a_terminal_of_80_columns(rd3, monkeypatch):
    from rich.console import Console

    from pipelines.commands import _show, data

    console = Console(width=80, highlight=False, soft_wrap=True)
    monkeypatch.setattr(_show, "console", console)
    monkeypatch.setattr(data, "console", console)
    monkeypatch.delenv("RD3_DATA", raising=False)
    code, out, err = rd3("data", "doctor")
    assert code == 0, err
    assert any(line.split()[:3] == ["digits", "ok", "1297"] or line.startswith("digits") for line in out.splitlines())
    assert "cifar10: Dataset cifar10 not found in" in out and "Fix: rd3 data fetch cifar10" in out


@pytest.mark.parametrize("words", LOOKING)
def test_who_only_looks_makes_no_home(rd3, home, words):
    code, _out, err = rd3(*words)
    assert code == 0, err
    assert not home.exists()


@pytest.mark.parametrize("words", LOOKING[:3])
def test_where_was_looked_is_said(rd3, home, words):
    _code, out, _err = rd3(*words)
    where = f"ledger {home / 'artifacts'}"
    assert (
        f"{where}; RD3's home {home} does not exist: change to the folder where you ran RD3, or set RD3_HOME\n" in out
    )
    assert f"0 intact, 0 damaged in {where}" in rd3("artifacts", "verify")[1]
    home.mkdir()
    _code, out, _err = rd3(*words)
    assert f"{where}\n" in out


def test_missing_data_is_blocked_with_the_way_to_mend_it(rd3):
    code, out, _err = rd3("plan", "cifar10")
    assert code == 0
    assert "blocked" in out
    assert "rd3 data fetch cifar10" in out


def test_a_report_says_which_results_it_did_not_look_up(rd3, tmp_path):
    """Their keys have the fingerprint of a dataset that is not there, so that finished ones look as if not done."""
    grid = tmp_path / "mine.yaml"
    grid.write_text(
        "methods: [random]\ndatasets: [cifar10, digits]\nipc: [1]\nteacher: resnet18\nstudents: [convnet]\n"
        "protocols: [{rd3-reduced: {labels: hard, epochs: 1}}]\n"
    )
    code, out, _err = rd3("report", str(grid))
    [said] = [line for line in out.splitlines() if line.startswith("results not looked up")]
    assert code == 0 and "Dataset cifar10 not found" in said and "rd3 data fetch cifar10" in said


def test_a_foreign_set_comes_in_and_goes_out(rd3, home, tmp_path):
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(20) % 10}, tmp_path / "mine.safetensors")
    code, out, err = rd3("set", "import", str(tmp_path / "mine.safetensors"), "--dataset", "digits")
    assert code == 0, err
    assert "IPC 2" in out
    _code, out, _err = rd3("set", "list", "--json")
    [row] = json.loads(out)
    assert (row["method"], row["ipc"], row["dataset"]) == ("imported", 2, "digits")
    assert row["source"] == "mine.safetensors" in rd3("set", "show", row["name"])[1]
    assert "intact: 20 images" in rd3("set", "verify", row["name"])[1]
    assert rd3("set", "export", row["name"], "--png", str(tmp_path / "png"))[0] == 0
    assert len(list((tmp_path / "png").rglob("*.png"))) == 20

    grid = tmp_path / "start.yaml"
    grid.write_text(
        f"methods: [{{sre2l: {{init: '{row['name']}'}}}}]\ndatasets: [digits]\nipc: [2]\nteacher: resnet18_w16\n"
    )
    code, out, err = rd3("plan", str(grid), "--json")
    assert code == 0, err
    items = {(item["kind"], item["status"]) for item in json.loads(out)["items"]}
    assert ("set", "reuse") in items, "the set that the grid starts from, by the first digits of its key"

    grid.write_text(
        f"methods: [random, {{MTT: {{sets: ['{row['name']}']}}}}]\ndatasets: [digits]\nipc: [2]\n"
        "teacher: resnet18_w16\nstudents: [convnet_w32]\nprotocols: [{rd3: {labels: hard}}]\nstudent_seeds: [0]\n"
    )
    code, out, err = rd3("plan", str(grid), "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert [(item["kind"], item["status"]) for item in plan["items"] if "imported" in item["label"]] == [
        ("set", "reuse")
    ]
    assert sum("MTT" in item["label"] for item in plan["items"] if item["kind"] == "evaluation") == 1
    code, _out, err = rd3("set", "verify", "ffff")
    assert code == 2
    assert "ffff" in err


def test_a_foreign_set_with_soft_labels_is_evaluated_with_them(rd3, home, monkeypatch, tmp_path):
    run: list[Recipe] = []

    def execute(expansion, plan, session, **_options):
        for key in plan.keys("run"):
            run.append(recipe := expansion.recipes[key])
            result = {"top1_pct": 12.3456, "correct": 42, "tested": 340}
            made = Entry(kind=recipe.kind, key=key, recipe=recipe.model_dump(mode="json"), result=result)
            Ledger(session.artifacts).add(made)
        return Outcome()

    monkeypatch.setattr("pipelines.byhand.execute", execute)
    labels = torch.arange(20) % 10
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    soft = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01
    file = {"images": images, "labels": labels}
    keys = []
    for name, own in (("with", {"label_syn": soft.half()}), ("without", {})):
        save_file(file | own, tmp_path / f"{name}.safetensors")
        code, out, err = rd3("set", "import", tmp_path / f"{name}.safetensors", "--dataset", "digits")
        assert code == 0, err
        assert ("20 x 10 float16 probabilities (rows sum to 1), 400 bytes" in out) is bool(own)
        assert ("--field soft_labels=own" in out) is bool(own)
        keys.append(re.search(r"set ([0-9a-f]{12}): IPC 2", out)[1])
    assert "20 images with soft labels (probabilities)" in rd3("set", "verify", keys[0])[1]
    own = ("--student", "convnet_w32", "--field", "soft_labels=own", "--field", "temperature=1")
    code, out, err = rd3("evaluate", keys[0], *own, "--student-seed", "0")
    assert code == 0, err
    [planned] = run
    assert isinstance(planned, EvaluationRecipe) and planned.teachers == () and planned.protocol.own_labels
    code, _out, err = rd3("evaluate", keys[1], *own)
    assert code == 2 and "the set has no soft labels of its own" in err and len(run) == 1
    code, _out, err = rd3("evaluate", keys[0], "--student", "convnet_w32")
    assert code == 2 and "or --field soft_labels=own for the set's own" in err
    code, _out, err = rd3("set", "import", tmp_path, "--dataset", "digits", "--soft-label-kind", "logits")
    assert code == 2 and "leave out --soft-label-kind" in err


def test_the_pixel_space_of_a_foreign_set_is_stated_and_said(rd3, tmp_path):
    unit = torch.rand((10, 3, 8, 8), generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 2)
    unit = unit.repeat_interleave(4, 3)
    unit[0, :, 0, 0], unit[0, :, 0, 1] = 0, 1
    save_file({"images": 2 * unit - 1, "labels": torch.arange(10)}, tmp_path / "mine.safetensors")
    bring = ("set", "import", str(tmp_path / "mine.safetensors"), "--dataset", "digits")
    code, _out, err = rd3(*bring)
    assert code == 2 and "give --normalised half" in err
    code, out, err = rd3(*bring, "--normalised", "half")
    assert code == 0, err
    assert out.splitlines()[:2] == ["images: float32, -1 to 1", "undone: half (0.5/0.5); pixels 0 to 1"]
    for wrong in ("dataset", "imagenet", "0.5/0.25"):
        code, _out, err = rd3(*bring, "--normalised", wrong)
        assert code == 2 and "give --normalised half" in err, wrong
    assert rd3(*bring, "--normalised", "0.5/0.5")[1].splitlines()[-1] == out.splitlines()[-1]
    save_file({"images": 1.05 * unit, "labels": torch.arange(10.0)}, tmp_path / "mine.safetensors")
    code, _out, err = rd3(*bring)
    assert code == 2 and "clip them with --clip" in err
    code, out, err = rd3(*bring, "--clip")
    assert code == 0, err
    assert "clipped to [0, 1]: " in out
    assert "warning: labels: float32 with whole values, read as class numbers" in out
    code, _out, err = rd3("set", "import", str(tmp_path), "--dataset", "digits", "--clip")
    assert code == 2 and "leave out --normalised and --clip" in err


def test_a_method_starts_from_one_file(rd3, tmp_path):
    code, _out, _err = rd3("method", "new", "mine", "--folder", str(tmp_path))
    assert code == 0
    assert 'register_method("mine"' in (tmp_path / "mine.py").read_text()
    assert rd3("method", "new", "mine", "--folder", str(tmp_path))[0] == 2
    assert rd3("method", "new", "class", "--folder", str(tmp_path))[0] == 2
    code, _out, err = rd3("method", "new", "other", "--folder", str(tmp_path / "mine.py"))
    assert code == 2 and "Cannot write to" in err
    assert rd3("method", "new", "other", "--folder", str(tmp_path / "new"))[0] == 0


def test_a_methods_card_says_what_its_settings_are_and_where_they_come_from(rd3):
    _code, out, _err = rd3("method", "show", "sre2l")
    assert "Source:" in out and "Undefined" not in out
    lines = [line.strip() for line in out.splitlines()]
    assert "bn_weight: by dataset  Weight of the BatchNorm statistics loss relative to the cross-entropy." in lines
    assert any(line.startswith("beta1: 0.5") for line in lines)
    place = lines.index("On cifar100 (VILA-Lab/SRe2L small-dataset recover_cifar.sh)")
    assert lines[place + 1] == "iterations=1000, lr=0.25, bn_weight=0.01, batch_classes=100, jitter=4"
    assert "On others at 32 pixels (none for this dataset; as CIFAR-100)" in lines
    assert "at IPC 50: batch_size=500" in rd3("method", "show", "edc")[1]
    assert "Settings: none" in rd3("method", "show", "random")[1]
    for name in METHODS:
        code, out, _err = rd3("method", "show", name)
        assert (code, "Undefined" in out) == (0, False), name


def test_a_method_is_tested_where_it_was_written(rd3, tmp_path, monkeypatch):
    METHODS.names()
    monkeypatch.setattr(METHODS, "_things", dict(METHODS._things))
    monkeypatch.chdir(tmp_path)
    assert rd3("method", "test", "mymethod")[2].startswith("UnknownName: There is no method 'mymethod'.\nFix: use one")
    _code, out, _err = rd3("method", "new", "mymethod")
    assert "Test it: rd3 method test ./mymethod.py" in out
    code, _out, err = rd3("method", "test", "mymethod")
    assert code == 2
    assert "There is no method 'mymethod', but there is a file mymethod.py in this folder." in err
    assert "Fix: test it with `rd3 method test ./mymethod.py`, or move it into " in err
    for words in ("./mymethod.py", "mymethod.py", str(tmp_path / "mymethod.py")):
        code, out, err = rd3("method", "test", words)
        assert (code, "mymethod: 15 of 15 checks passed" in out) == (0, True), err
    assert "There is no file no.py" in rd3("method", "test", "./no.py")[2]


def test_bad_words_by_hand(rd3):
    for words, message in [
        (("distill", "sre2l", "--dataset", "digits", "--ipc", "1"), "needs a teacher"),
        (("distill", "random", "--dataset", "digits", "--ipc", "1000"), "IPC is 1000"),
        (("distill", "herding", "--dataset", "digits", "--ipc", "1", "--set-seed", "3"), "herding has no set seed"),
        (("distill", "random", "--dataset", "digts", "--ipc", "1"), "did you mean 'digits'"),
        (("distill", "random", "--dataset", "digits", "--ipc", "1", "--setting", "x=1"), "no setting 'x'"),
        (("evaluate", "ffff", "--teacher", "resnet18"), "ffff"),
    ]:
        code, _out, err = rd3(*words)
        assert code == 2
        assert message in err


def test_what_is_made_by_hand_is_said_before_it_begins(rd3, monkeypatch, capsys):
    begun = []

    def execute(expansion, plan, *_rest, **_options):
        begun.append((capsys.readouterr().out, [expansion.recipes[key].kind for key in plan.keys("run")]))
        return Outcome(failed=[Failure("a teacher", "f" * 64, "failed", "no luck")])

    monkeypatch.setattr("pipelines.byhand.execute", execute)
    for words, kinds in [
        (("distill", "sre2l", "--dataset", "digits", "--ipc", "1", "--teacher", "convnet"), ["teacher", "set"]),
        (("teacher", "train", "digits", "--role", "convnet"), ["teacher"]),
    ]:
        code, out, _err = rd3(*words)
        assert (code, out) == (3, "failed: a teacher: no luck\n")
        said, made = begun.pop()
        first, *_rest, last = said.splitlines()
        assert made == kinds
        assert re.fullmatch(r"run    teacher convnet digits \(6 epochs\) [0-9a-f]{8}, about (\d+ min )?\d+ s", first)
        assert re.fullmatch(r"about (\d+ min )?\d+ s with \d+ in parallel \(rough estimate\); starting Ray", last)


def test_less_than_published_is_said_with_every_result(rd3, home, monkeypatch):
    def execute(expansion, plan, session, **_options):
        for key in plan.keys("run"):
            recipe, result = expansion.recipes[key], {"top1_pct": 12.3456, "correct": 42, "tested": 340}
            made = Entry(kind=recipe.kind, key=key, recipe=recipe.model_dump(mode="json"), result=result)
            Ledger(session.artifacts).add(made)
        return Outcome()

    monkeypatch.setattr("pipelines.byhand.execute", execute)
    monkeypatch.setattr("tracking.runs.artifacts.exists", lambda *_words, **_options: True)
    monkeypatch.setattr("tracking.runs.artifacts.fetch", lambda *_words, **_options: None)
    distill = ("distill", "sre2l", "--dataset", "cifar10", "--ipc", "1", "--teacher", "resnet18")
    monkeypatch.setattr("pipelines.grid.catalog.dataset_fingerprint", lambda *_words, **_options: "f" * 32)
    code, out, err = rd3(*distill)
    assert (code, "run/published" in out) == (0, False), err
    code, out, err = rd3(*distill, "--setting", "iterations=20")
    key = re.search(r"set ([0-9a-f]{12}); run/published: iterations 20/1000\. Next: ", out)[1]
    whole = ("evaluate", key, "--teacher", "resnet18", "--student-seed", "0")
    assert rd3(*whole)[1].endswith("top-1 12.35 % (n=1); run/published: iterations 20/1000\n")
    _code, out, _err = rd3(*whole, "--field", "epochs=4")
    assert out.endswith("top-1 12.35 % (n=1); run/published: iterations 20/1000, epochs 4/400\n")
    _code, out, _err = rd3(*whole, "--protocol", "minimax-hard", "--field", "epochs=4")
    assert out.endswith("run/published: iterations 20/1000, epochs 4/3000\n"), "its epochs at IPC 1"
    rule = "all: {loss: ce, labels: hard, batch_size: 9, zeta: 1, augmentation: [flip]}\n"
    rule += "same_network: {epochs: 70}\nother_network: {epochs: 90}\n"
    (home / "presets").mkdir()
    (home / "presets" / "mine.yaml").write_text(f"name: mine\nsource: me\n{rule}")
    for student, epochs in (("resnet18", 70), ("convnet", 90)):
        _code, out, err = rd3(*whole, "--student", student, "--protocol", "mine", "--field", "epochs=4")
        assert out.endswith(f", epochs 4/{epochs}\n"), f"hard labels have the teacher's network as well {err}"


def test_a_folder_of_ones_own_is_told_its_resolution(rd3, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (32, 40), (40 * index, 0, 0)).save(tmp_path / "mine" / name / f"{index}.png")
    (tmp_path / "mine" / "a" / "moving.gif").touch()
    add = ("data", "add", "own", "--folder", str(tmp_path / "mine"))
    pixels, order, unread, first, second, third = rd3(*add)[1].splitlines()
    # one image of either class is drawn for the test split, of all that have one value per channel
    assert pixels.startswith("pixels of 10 training images, 0 to ")
    assert order == "class order (alphabetical): a, b"
    assert unread == f"warning: 1 file below {tmp_path / 'mine'} is not read: 1 .gif"
    assert first.startswith("own: 2 classes, 10 training and 2 test images")
    assert second == "input resolution 224 pixels; the shorter side of the images is 32"
    assert third == f"32 is closer: rd3 data add own --folder {tmp_path / 'mine'} --resolution 32"
    assert rd3(*add, "--resolution", "32")[1].splitlines()[4:] == [
        "input resolution 32 pixels; the shorter side of the images is 32"
    ]


def test_tables_are_for_people_and_json_is_exact(capsys):
    rows = [{"name": "a" * 200, "top1_pct": 99.41176470588235, "time_s": 0.002758540000000309, "none": None, "n": 0.0}]
    show_table(rows)
    _head, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["a" * 200, "99.41", "0.0028", "0.00"], "in one line, where there is no terminal"
    show_table(rows, as_json=True)
    assert json.loads(capsys.readouterr().out) == rows


def test_the_command_of_the_ui_can_be_copied_into_a_shell():
    uri = "sqlite:////home/me/my study (2)/mlflow.db"
    said = ui_line(Session(uri, "artifacts", Path("home")), "/#/experiments")
    words = shlex.split(said.removeprefix("MLflow UI: ").splitlines()[0])
    assert words == [str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", uri]


def test_a_dataset_of_the_packages_is_in_no_folder(rd3):
    code, out, _err = rd3("data", "fetch", "digits")
    assert (code, out) == (0, "digits comes with RD3's packages\n")


def test_fields_are_read_as_yaml():
    assert parse_fields(["a=1", "b=0.5", "c=x", "d=[1, 2]", "e=true"]) == {
        "a": 1,
        "b": 0.5,
        "c": "x",
        "d": [1, 2],
        "e": True,
    }
    assert parse_fields(["lr=1e-3", "weight_decay=5.0E1", "start=2024-13-45", "drop="]) == {
        "lr": 0.001,
        "weight_decay": 50,
        "start": "2024-13-45",
        "drop": None,
    }
    with pytest.raises(BadValue, match="NAME=VALUE"):
        parse_fields(["a"])
    with pytest.raises(BadValue, match=r"Expected a number in 'lr=1,5e-3', got one with a comma\. Fix: write 1\.5e-3"):
        parse_fields(["lr=1,5e-3"])
    for value, why in (("[1, 2", "Invalid YAML"), ("010", "base 8"), (".nan", "finite"), ("&b [*b]", "Aliases")):
        with pytest.raises(BadValue, match=re.escape(f"Cannot read the value in 'a={value}': ") + f".*{why}"):
            parse_fields([f"a={value}"])


def test_a_path_that_cannot_be_written_is_said_in_a_sentence(rd3, tmp_path):
    (tmp_path / "file").touch()
    code, _out, err = rd3("plan", "demo", "--recipes", tmp_path / "file" / "recipes")
    assert code == 2 and f"Cannot use {tmp_path / 'file'}" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ("run", "demo", "--concurrent", "0"),
        ("submit", "demo", "--concurrent", "-1"),
        ("distill", "random", "--dataset", "digits", "--ipc", "1", "--set-seed", "-1"),
        ("evaluate", "0123456789ab", "--student-seed", "-1"),
    ],
)
def test_numbers_have_bounds(rd3, words):
    code, _out, err = rd3(*words)
    assert code == 2 and "Invalid value for" in err and words[-2] in err


def test_every_mistake_of_a_sweep_is_said_and_nothing_is_written(rd3, home, tmp_path):
    sweep = tmp_path / "bad.yaml"
    sweep.write_text(
        "methods: [randm]\ndataset: digits\nipc: 1\nteacher: resnet18\nprotocol: rd3\nspace: {zeta: [1]}\n"
    )
    code, _out, err = rd3("sweep", str(sweep))
    assert code == 2
    assert "bad.yaml has 3 mistakes" in err
    assert "did you mean 'random'?" in err and "The key 'trials' is missing" in err and "There is no choice" in err
    assert state(home) == set()


def test_a_sweep_is_no_grid_and_a_grid_no_sweep(rd3, home, tmp_path):
    grid, sweep, neither = (tmp_path / f"{name}.yaml" for name in ("grid", "sweep", "neither"))
    grid.write_text("methods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\n")
    sweep.write_text("methods: [random]\ndataset: digits\nipc: 1\nteacher: resnet18_w16\nspace: {}\ntrials: 2\n")
    neither.write_text("methods: [random]\n")
    for command in ("run", "plan", "status", "report"):
        code, _out, err = rd3(command, str(sweep))
        assert (code, err) == (2, f"BadValue: {sweep} is a sweep, not a grid.\nFix: use `rd3 sweep {sweep}`\n")
        assert f"Grid {neither} has 3 mistakes" in rd3(command, str(neither))[2]
    code, _out, err = rd3("sweep", str(grid))
    assert (code, err) == (2, f"BadValue: {grid} is a grid, not a sweep.\nFix: use `rd3 run {grid}`\n")
    assert f"Sweep {neither} has 6 mistakes" in rd3("sweep", str(neither))[2]
    assert not home.exists()


def test_a_users_protocol_is_listed_and_taken_by_grids(rd3, home, tmp_path):
    (home / "presets").mkdir(parents=True)
    (home / "presets" / "mine.yaml").write_text(
        "name: mine\nsource: me\nreduces: rd3\nall: {epochs: 3, zeta: 1, batch_size: 5, augmentation: []}\n"
    )
    assert "mine" in {row["name"] for row in json.loads(rd3("list", "protocols", "--json")[1])}
    grid = tmp_path / "grid.yaml"
    grid.write_text("methods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nprotocols: [mine]\n")
    code, out, _err = rd3("plan", str(grid), "--json")
    assert code == 0 and json.loads(out)["cells"] == 3


def test_a_name_from_a_file_does_not_begin_a_line(capsys):
    show_note(Note("not read from a.pt: notes\nset 0123456789ab: IPC 5", doubtful=True))
    assert capsys.readouterr().out == "warning: not read from a.pt: notes set 0123456789ab: IPC 5\n"
