"""``python -m rd3.run --cache-logits``: ten evaluations of equal views, of which the first eight are one pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd3 import run
from rd3.campaign import command, runner
from rd3.datasets import Roots, open_dataset
from rd3.evaluation.logits_folder import SUFFIX
from rd3.evaluation.packing import PACK_SIZE
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Recipe, SetRecipe, TeacherRecipe, TeacherTraining, to_json
from rd3.store import FolderStore

COUNT = PACK_SIZE + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store of a teacher, a set and all evaluations, which were run without cached logits."""
    folder = tmp_path_factory.mktemp("cached")
    dataset = open_dataset("digits", Roots(None, folder / "home"))
    info = dataset.info
    shared = {
        "data": Data(name="digits", fingerprint=dataset.fingerprint),
        "classes": info.classes,
        "resolution": 32,
    }
    training = TeacherTraining(epochs=1, batch_size=256, lr=0.05, momentum=0.9, weight_decay=0, crop="none", flip=False)
    teacher = TeacherRecipe(
        network="convnet_w32", normalisation=info.normalisation, training=training, precision="auto", seed=0, **shared
    )
    made = SetRecipe(method="random", version=1, settings={}, ipc=1, set_seed=0, **shared)
    (folder / "parents").mkdir()
    for recipe in (teacher, made):
        (folder / "parents" / f"{recipe.kind}.json").write_text(to_json(recipe))
    assert ran(folder, "parents", folder / "parents-only") == 0
    (folder / "recipes").mkdir()
    for number in range(COUNT):
        (folder / "recipes" / f"{number:02}.json").write_text(to_json(evaluation(teacher, made, 1 + number / 10)))
    assert ran(folder, "recipes", folder / "parents-only", out="plain") == 0
    return folder


def evaluation(teacher: TeacherRecipe, made: SetRecipe, zeta: float) -> EvaluationRecipe:
    values = {"epochs": 2, "zeta": zeta}
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=values)
    return EvaluationRecipe.of(
        made,
        teachers=[teacher],
        protocol=protocol,
        student="convnet_w32",
        student_seed=0,
        normalisation=teacher.normalisation,
    )


def ran(folder: Path, recipes: str, store: Path, *options: str, out: str = "out") -> int:
    words = [str(folder / recipes), "--store", str(store), "--out", str(folder / out), "--home", str(folder / "home")]
    return run.main([*words, *options])


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    """A store with the teacher and the set alone."""
    plain, mine = FolderStore(folder / "parents-only"), FolderStore(tmp_path / "store")
    for kind, key in plain.names():
        if kind != "evaluation":
            mine.put(plain.find(kind, key), plain.fetch(kind, key))
    return mine.root


def evaluations(store: Path) -> dict[str, tuple[dict, str, dict]]:
    """Key to figures that do not depend on the clock, the digest of the curve, and provenance."""
    found, opened = {}, FolderStore(store)
    for kind, key in opened.names():
        if kind == "evaluation":
            entry = opened.find(kind, key)
            figures = {name: entry.result[name] for name in entry.result.keys() - {"wall_s", "process_s", "peak_mib"}}
            found[key] = figures, entry.files["curve.parquet"], entry.made
    return found


def test_a_later_pack_reads_what_the_first_has_written_and_nothing_is_left(
    folder, store, tmp_path, passes, monkeypatch
):
    seen: list[tuple[int, bool]] = []
    learnt: list[str] = []
    handle = command.Scheduler.handle

    def watch(scheduler: command.Scheduler, event: runner.Event, **options) -> None:
        if isinstance(event, runner.Ended):
            seen.append((len(list((folder / "home").rglob(f"*{SUFFIX}"))), event.logits_read))
        handle(scheduler, event, **options)

    monkeypatch.setattr(command.Scheduler, "handle", watch)
    monkeypatch.setattr(command.Estimates, "learn", lambda _estimates, key, _spent: learnt.append(key))
    assert ran(folder, "recipes", store, "--cache-logits", "1MB", out=tmp_path.name) == 0
    assert seen == [(1, False)] * PACK_SIZE + [(0, True)] * 2
    assert sum(passes) == 2 + 2 * 10, "two images to check the number of classes, then every view once"
    assert learnt == []
    mine, plain = evaluations(store), evaluations(folder / "parents-only")
    assert {key: one[:2] for key, one in mine.items()} == {key: one[:2] for key, one in plain.items()}
    assert sorted(one[2].get("cached_logits", "") for one in mine.values()) == [""] * PACK_SIZE + ["read"] * 2
    assert not list((folder / "home").rglob(f"*{SUFFIX}")) and not list(store.rglob("*logits*"))
    assert not any("cached_logits" in one[2] for one in plain.values())


def test_workers_cache_logits_too(folder, store, tmp_path):
    """With two processes the order is not fixed, but the results are the same and nothing is left."""
    options = ("--cache-logits", "1MB", "--workers", "2")
    assert ran(folder, "recipes", store, *options, out=tmp_path.name) == 0
    mine, plain = evaluations(store), evaluations(folder / "parents-only")
    assert {key: one[:2] for key, one in mine.items()} == {key: one[:2] for key, one in plain.items()}
    assert not list((folder / "home").rglob(f"*{SUFFIX}"))


def test_an_interrupted_run_leaves_logits_for_the_evaluations_that_it_resumes_with(
    folder, store, tmp_path, passes, monkeypatch
):
    perform_pack, calls = runner.Runner._run_pack, []

    def interrupted(self: runner.Runner, recipes: list[Recipe], *how) -> list[runner.Ended]:
        calls.append(len(recipes))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return perform_pack(self, recipes, *how)

    monkeypatch.setattr(runner.Runner, "_run_pack", interrupted)
    options = ("--cache-logits", "1MB")
    assert ran(folder, "recipes", store, *options, out=tmp_path.name) in (4, 130)
    assert len(list((folder / "home").rglob(f"*{SUFFIX}"))) == 1
    before = len(passes)
    assert ran(folder, "recipes", store, *options, out=tmp_path.name) == 0
    assert calls == [PACK_SIZE, 2, 2] and len(passes) == before, "no teacher was asked"
    assert not list((folder / "home").rglob(f"*{SUFFIX}"))


def test_a_size_that_is_none(folder, store, capsys):
    with pytest.raises(SystemExit):
        ran(folder, "recipes", store, "--cache-logits", "much")
    assert "'much' is not a size above 0" in capsys.readouterr().err
