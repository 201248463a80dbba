"""A trial of several recipes, really trained, without Ray and MLflow: each is what it is alone, and ends by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.engine import attempt, recipe_run, trial, trial_log
from pipelines.engine.job import Job, TrialEnd
from rd3 import perform
from rd3.datasets import Roots, dataset_info, open_dataset
from rd3.locks import is_locked
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, to_json
from rd3.store import Entry, FolderStore
from tests.tracking.remote import RemoteFolder
from tracking.place import Place
from tracking.runs import artifacts
from tracking.store import GivenStore

TIMES = ("wall_s", "process_s", "peak_mib")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(None, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def sets(roots: Roots) -> list[SetRecipe]:
    dataset = open_dataset("digits", roots)
    data = Data(name="digits", fingerprint=dataset.fingerprint)
    common = {"method": "random", "version": 1, "settings": {}, "ipc": 1, "classes": dataset.info.classes}
    return [SetRecipe(**common, resolution=32, data=data, set_seed=seed) for seed in range(2)]


def evaluation(made: SetRecipe, **fields: Any) -> EvaluationRecipe:
    """With hard labels, so that no teacher is needed."""
    values = {"epochs": 2, "labels": "hard", "precision": "fp32"} | fields
    return EvaluationRecipe.of(
        made,
        teachers=[],
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=values),
        student="convnet_w32",
        student_seed=0,
        normalisation=dataset_info("digits", Roots(None, Path())).normalisation,
    )


class Bench:
    """Trials whose store and tracking server are in the hands of the test."""

    def __init__(self, home: Path, roots: Roots, sets: list[SetRecipe], monkeypatch: pytest.MonkeyPatch):
        self.home, self.roots, self.store = home, roots, FolderStore(home / "store")
        for made in sets:
            self.store.put(perform.perform(made, self.store, roots, home / made.key), home / made.key / "result")
        self.runs: list[tuple[str, str]] = []
        """(recipe's key, how its MLflow run ended)."""
        self.on_disk: list[int] = []
        """How many results were on the disk when a run was finished."""
        self.lost: set[str] = set()
        """Keys whose trial dies while it sends them."""
        monkeypatch.setattr(recipe_run, "_tracker", lambda _place: self)
        monkeypatch.setattr(attempt, "given_store", lambda _jobs: self.store)

    def begin(self, recipe: EvaluationRecipe, _facts: Any, **_where: Any) -> Any:
        bench = self

        class FakeRun:
            def finish(self, entry: Entry, folder: Path, **_shown: Any) -> Entry:
                if recipe.key in bench.lost:
                    raise KeyboardInterrupt
                bench.on_disk.append(len(list((bench.home / "work").rglob("made.json"))))
                bench.runs.append((recipe.key, "finished"))
                return entry.model_copy(update={"run_id": "run", "artifact": folder.as_uri()})

            def fail(self, status: str, _reason: str) -> None:
                bench.runs.append((recipe.key, status))

        return FakeRun()

    def job(self, recipe: EvaluationRecipe) -> Job:
        return Job(
            "evaluation", recipe.key, to_json(recipe), {}, Place("", str(self.home / "artifacts"), self.home), "0", None
        )  # fmt: skip

    def trial(self, *recipes: EvaluationRecipe, **options: Any) -> dict[str, TrialEnd]:
        """A trial of these; each must be said to end once."""
        ends: dict[str, TrialEnd] = {}

        def ended(number: int, end: TrialEnd) -> None:
            assert recipes[number].key not in ends
            ends[recipes[number].key] = end

        jobs = [replace(self.job(recipe), **options) for recipe in recipes]
        attempt.attempt(jobs, lambda _number, _fraction, _note: None, ended)
        assert set(ends) == {recipe.key for recipe in recipes}
        return ends

    def events(self, recipe: EvaluationRecipe) -> list[str]:
        return [event["event"] for event in trial_log.events(self.home, recipe.key)]

    def alone(self, recipe: EvaluationRecipe) -> Entry:
        return perform.perform(recipe, self.store, self.roots, self.home / "alone" / recipe.key)


@pytest.fixture
def bench(tmp_path: Path, roots: Roots, sets: list[SetRecipe], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, roots, sets, monkeypatch)


def same(end: TrialEnd, alone: Entry) -> bool:
    """Whether a recipe gave what it gives alone: every figure but the times, and every byte of its curve."""
    entry = Entry.model_validate(end.entry)
    figures = [{name: value for name, value in one.result.items() if name not in TIMES} for one in (entry, alone)]
    return figures[0] == figures[1] and entry.files["curve.parquet"] == alone.files["curve.parquet"]


def test_each_of_a_pack_is_what_it_is_alone_and_has_a_run_and_a_log_of_its_own(bench: Bench, sets: list[SetRecipe]):
    recipes = [evaluation(sets[0]), evaluation(sets[0], lr=0.01), evaluation(sets[0], zeta=2.0)]
    ends = bench.trial(*recipes)
    for recipe in recipes:
        assert same(ends[recipe.key], bench.alone(recipe))
        assert ends[recipe.key].entry["made"]["pack"] == 3
        assert bench.events(recipe) == ["start", "made", "done"]
    assert bench.runs == [(recipe.key, "finished") for recipe in recipes]
    assert bench.on_disk == [3, 3, 3], "all results are on the disk before the first is sent"


def test_what_diverges_ends_and_moves_no_other(bench: Bench, sets: list[SetRecipe]):
    good, bad = evaluation(sets[0]), evaluation(sets[0], optimizer="sgd", lr=1e30)
    ends = bench.trial(bad, good)
    assert ends[bad.key].status == "diverged" and "The loss is" in ends[bad.key].reason
    assert same(ends[good.key], bench.alone(good))
    assert bench.runs == [(bad.key, "diverged"), (good.key, "finished")]
    assert (bench.events(bad), bench.events(good)) == (["start", "fail"], ["start", "made", "done"])


def test_what_an_earlier_attempt_had_finished_is_only_reported(bench: Bench, sets: list[SetRecipe]):
    recipes = [evaluation(sets[0], lr=0.001 * number) for number in range(1, 4)]
    first = bench.trial(recipes[1])
    ends = bench.trial(*recipes)
    assert ends[recipes[1].key] == first[recipes[1].key] and "pack" not in ends[recipes[1].key].entry["made"]
    assert [ends[recipes[number].key].entry["made"]["pack"] for number in (0, 2)] == [2, 2]
    assert bench.events(recipes[1]) == ["start", "made", "done"]


def test_a_broken_parent_ends_only_what_is_made_from_it(bench: Bench, sets: list[SetRecipe]):
    recipes = [evaluation(sets[1]), evaluation(sets[0]), evaluation(sets[0], lr=0.01)]
    shutil.rmtree(bench.home / "store" / "artifacts" / "set" / sets[1].key / "blocks")
    ends = bench.trial(*recipes)
    assert [ends[recipe.key].status for recipe in recipes] == ["failed", "done", "done"]
    assert ends[recipes[0].key].broken == [("set", sets[1].key)]


def test_a_device_without_room_for_the_pack_leaves_all_to_be_made_alone(
    bench: Bench, sets: list[SetRecipe], monkeypatch: pytest.MonkeyPatch
):
    def full(*_pack: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    recipes = [evaluation(sets[0]), evaluation(sets[0], lr=0.01)]
    monkeypatch.setattr(attempt, "perform_pack", full)
    with pytest.raises(attempt.Unfit, match=r"OutOfMemoryError: CUDA out of memory\. Tried to allocate 2 GiB\.$"):
        bench.trial(*recipes)
    assert bench.runs == []
    for recipe in recipes:
        assert not is_locked(bench.job(recipe).folder / "lock")
        assert bench.events(recipe) == ["start"], "as of a process that was killed"
        assert same(bench.trial(recipe)[recipe.key], bench.alone(recipe))


def test_what_one_of_a_pack_has_brought_does_not_end_the_others(bench: Bench, sets: list[SetRecipe]):
    good = evaluation(sets[0])
    bad = good.model_copy(update={"protocol": good.protocol.model_copy(update={"test_epochs": (9,)})})
    ends = bench.trial(bad, good)
    assert "test_epochs [9] are outside 1..2" in ends[bad.key].reason
    assert same(ends[good.key], bench.alone(good)) and "pack" not in ends[good.key].entry["made"]


def test_a_pack_that_dies_while_it_is_sent_is_not_trained_again(
    bench: Bench, sets: list[SetRecipe], monkeypatch: pytest.MonkeyPatch
):
    recipes = [evaluation(sets[0]), evaluation(sets[0], lr=0.01)]
    bench.lost = {recipes[1].key}
    with pytest.raises(KeyboardInterrupt):
        bench.trial(*recipes)
    bench.lost = set()
    monkeypatch.setattr(attempt, "perform", None)
    monkeypatch.setattr(attempt, "perform_pack", None)
    for recipe in recipes:
        end = bench.trial(recipe)[recipe.key]
        assert same(end, bench.alone(recipe)) and end.entry["made"]["pack"] == 2
    assert [key for key, _how in bench.runs] == [recipe.key for recipe in recipes]


def test_progress_of_all_is_said_together_now_and_then_and_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: clock[0])
    said: list[dict[str, Any]] = []
    reports = trial.Reports(said.append)
    for second, number in enumerate((0, 1, 0, 1, 0)):
        clock[0] = float(second)
        reports.progress(number, second / 10, f"step {second}")
    reports.ended(1, TrialEnd("oom", "no room"))
    assert json.loads(said[0]["moved"]) == [[0, 0.2, "step 2"], [1, 0.3, "step 3"]]
    assert said[1:] == [{"number": 1, "end": TrialEnd("oom", "no room").to_json()}]
    reports.progress(0, 0.0, "restarting: checkpoint.safetensors is damaged")
    assert json.loads(said[2]["moved"]) == [[0, 0.0, "restarting: checkpoint.safetensors is damaged"]], "at once"


def test_a_set_damaged_between_check_and_use_is_downloaded_again_for_all_of_a_pack(
    bench: Bench, sets: list[SetRecipe], monkeypatch: pytest.MonkeyPatch
):
    remote = RemoteFolder(bench.store.root / "artifacts" / "set" / sets[0].key)
    entry = bench.store.find("set", sets[0].key).model_copy(update={"artifact": "s3://bucket/set"})
    place = Place("", "", bench.home)
    monkeypatch.setattr(artifacts, "open_objects", lambda _uri: remote)
    monkeypatch.setattr(attempt, "given_store", lambda _jobs: GivenStore(place, [entry]))
    trained: list[int] = []

    def damaged(pack: Any, *words: Any, **options: Any) -> Any:
        trained.append(len(pack))
        if len(trained) == 1:
            next((bench.home / "cache").rglob("*.safetensors")).write_bytes(b"damaged")
        return perform.perform_pack(pack, *words, **options)

    monkeypatch.setattr(attempt, "perform_pack", damaged)
    recipes = [evaluation(sets[0]), evaluation(sets[0], lr=0.01)]
    ends = bench.trial(*recipes)
    assert trained == [2, 2], "the second time again together"
    assert remote.downloads == 2 * len(entry.files)
    for recipe in recipes:
        assert same(ends[recipe.key], bench.alone(recipe))
        assert bench.events(recipe) == ["start", "made", "done"]
