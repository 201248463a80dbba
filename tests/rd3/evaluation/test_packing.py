"""Packs: which evaluations go together, and that each gives what it gives alone, with an end of its own."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
import torch

from rd3 import perform
from rd3.campaign import command
from rd3.campaign.estimates import Estimates
from rd3.campaign.queue import Queue
from rd3.campaign.runner import Ended, Progressed, Runner
from rd3.campaign.scheduler import Scheduler, run_in_process, run_in_workers
from rd3.campaign.view import View
from rd3.campaign.workers import WorkerPool
from rd3.datasets import Roots, dataset_info, open_dataset
from rd3.errors import Diverged, StoreError
from rd3.evaluation.packing import Packing
from rd3.planning.cost import CPU_THREAD
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, to_json
from rd3.store import FolderStore
from rd3.synthetic_set import SyntheticSet


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> Roots:
    return Roots(None, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def made(roots) -> SetRecipe:
    dataset = open_dataset("digits", roots)
    return SetRecipe(
        method="random", version=1, settings={}, ipc=1, set_seed=0, classes=dataset.info.classes, resolution=32,
        data=Data(name="digits", fingerprint=dataset.fingerprint),
    )  # fmt: skip


@pytest.fixture
def store(made, roots, tmp_path) -> FolderStore:
    """With the set."""
    store = FolderStore(tmp_path / "store")
    store.put(perform.perform(made, store, roots, tmp_path / "set"), tmp_path / "set" / "result")
    return store


def evaluation(made: SetRecipe, student: str = "convnet_w32", seed: int = 0, **fields) -> EvaluationRecipe:
    """With hard labels, so that no teacher is needed."""
    protocol = resolve_protocol(
        "rd3", factor=1, same_network=True, set_size=10, overrides={"epochs": 2, "labels": "hard"} | fields
    )
    return EvaluationRecipe.of(
        made,
        teachers=[],
        protocol=protocol,
        student=student,
        student_seed=seed,
        normalisation=dataset_info("digits", Roots(None, Path())).normalisation,
    )


def test_equal_views_go_together_and_on_a_gpu_equal_shapes(made):
    first = evaluation(made)
    other_rate, other_network = evaluation(made, lr=0.01), evaluation(made, "convnet_d1")
    other_seed, other_batch = evaluation(made, seed=1), evaluation(made, batch_size=5)
    validation = first.model_copy(update={"tested_on": "validation"})
    recipes = [made, first, other_seed, other_rate, other_batch, validation, other_network]

    def companions(of, room: int = 9, *, side_by_side: bool, busy=()) -> list[EvaluationRecipe]:
        return Packing(recipes, side_by_side=side_by_side).companions(of, lambda key: key not in busy, room)

    assert companions(first, side_by_side=False) == [other_rate, other_network]
    assert companions(first, side_by_side=True) == [other_rate, other_network, other_seed], "what shares views first"
    assert companions(first, 1, side_by_side=True) == [other_rate]
    assert companions(first, side_by_side=True, busy=[other_rate.key]) == [other_network, other_seed]
    assert companions(made, side_by_side=True) == companions(first, 0, side_by_side=True) == []


def test_a_pack_gives_each_its_own_entry(made, roots, store, tmp_path):
    recipes = [evaluation(made), evaluation(made, lr=0.01), evaluation(made, "convnet_d1"), evaluation(made, seed=1)]
    entries = perform.perform_pack([perform.Part(one, tmp_path / one.key) for one in recipes], store, roots)
    for recipe, entry in zip(recipes, entries, strict=True):
        alone = perform.perform(recipe, store, roots, tmp_path / "alone" / recipe.key)
        timed = {"wall_s", "process_s", "peak_mib"}
        assert {name: entry.result[name] for name in entry.result.keys() - timed} == {
            name: alone.result[name] for name in alone.result.keys() - timed
        }
        assert entry.key == recipe.key and entry.files["curve.parquet"] == alone.files["curve.parquet"]
        assert entry.made["pack"] == 4 and "pack" not in alone.made


def test_what_ends_one_stands_in_its_place(made, roots, store, tmp_path):
    recipes = [evaluation(made), evaluation(made, optimizer="sgd", lr=1e30)]
    entry, error = perform.perform_pack([perform.Part(one, tmp_path / one.key) for one in recipes], store, roots)
    assert entry.key == recipes[0].key and isinstance(error, Diverged)


def scheduler_of(recipes, store, roots, tmp_path, **options) -> tuple[Scheduler, Runner]:
    queue = Queue(recipes, lambda kind, key: store.find(kind, key) is not None)
    estimates = Estimates(queue.recipes, lambda _kind, _key: None, lambda name: dataset_info(name, roots), CPU_THREAD)
    runner = Runner(store=store.root, roots=roots, out=tmp_path / "out")
    return Scheduler(queue, estimates, View(io.StringIO(), options.pop("workers", 1)), **options), runner


def test_a_campaign_hands_out_packs_and_leaves_work_to_the_other_workers(made, roots, store, tmp_path):
    recipes = [evaluation(made, lr=0.001 * number) for number in range(1, 11)]
    assert len(scheduler_of(recipes, store, roots, tmp_path)[0].next()) == 8
    assert len(scheduler_of(recipes, store, roots, tmp_path, workers=5)[0].next()) == 2
    each = scheduler_of(recipes, store, roots, tmp_path)[0].estimates.seconds(recipes[0].key)
    within = 3.5 * each / 0.9  # a tenth is kept for stopping
    assert len(scheduler_of(recipes, store, roots, tmp_path, seconds=within)[0].next()) == 3


def test_a_campaign_of_packs_ends_as_one_by_one(made, roots, store, tmp_path):
    recipes = [evaluation(made, lr=0.001 * number) for number in range(1, 4)]
    recipes.append(evaluation(made, optimizer="sgd", lr=1e30))
    scheduler, runner = scheduler_of(recipes, store, roots, tmp_path)
    run_in_process(scheduler, runner)
    assert [state.name for state in scheduler.queue.states.values()] == ["done"] * 3 + ["diverged"]
    assert command.exit_code(scheduler) == 3
    for recipe in recipes[:3]:
        assert store.find("evaluation", recipe.key).made["pack"] == 4


def test_a_result_that_cannot_be_stored_ends_its_own_recipe_alone(made, roots, store, tmp_path, monkeypatch):
    recipes = [evaluation(made), evaluation(made, lr=0.01)]
    put = FolderStore.put

    def full(self, entry, folder):
        if entry.key == recipes[0].key:
            raise StoreError("Cannot write to the store: No space left on device.", "free space")
        return put(self, entry, folder)

    monkeypatch.setattr(FolderStore, "put", full)
    scheduler, runner = scheduler_of(recipes, store, roots, tmp_path)
    run_in_process(scheduler, runner)
    assert [state.name for state in scheduler.queue.states.values()] == ["failed", "done"]
    assert "No space left" in scheduler.queue.states[recipes[0].key].reason


@pytest.mark.parametrize("file", ["student.safetensors", "result.json"])
def test_a_file_that_cannot_be_written_ends_its_own_evaluation_alone(made, roots, store, tmp_path, file):
    recipes = [evaluation(made), evaluation(made, lr=0.01), evaluation(made, lr=0.1)]
    (tmp_path / recipes[1].key / "result" / file).mkdir(parents=True)
    parts = [perform.Part(one, tmp_path / one.key, keep_student=True) for one in recipes]
    first, error, last = perform.perform_pack(parts, store, roots)
    assert (first.key, last.key) == (recipes[0].key, recipes[2].key) and isinstance(error, OSError)
    for entry in (first, last):
        store.put(entry, tmp_path / entry.key / "result")
        assert (store.fetch("evaluation", entry.key) / "student.safetensors").is_file()


def test_a_damaged_entry_of_the_larger_set_is_no_larger_set(made, roots, store, tmp_path):
    larger = made.model_copy(update={"ipc": 2})
    store.put(perform.perform(larger, store, roots, tmp_path / "larger"), tmp_path / "larger" / "result")
    expected = perform.perform(made, store, roots, tmp_path / "alone")
    (entry,) = (store.root / "by-key" / "set").glob(f"{larger.key}.json")
    entry.write_text("{")
    found = perform.perform(made, store, roots, tmp_path / "again", larger=larger.key)
    assert found.content == expected.content


def test_what_concerns_all_of_a_pack_is_tried_one_by_one(made, roots, store, tmp_path, monkeypatch):
    recipes = [evaluation(made), evaluation(made, lr=0.01)]
    calls = []

    def fails(pack, *_rest, **_options):
        calls.append(len(pack))
        raise ValueError("no pack today")

    monkeypatch.setattr(perform, "perform_pack", fails)
    scheduler, runner = scheduler_of(recipes, store, roots, tmp_path)
    run_in_process(scheduler, runner)
    assert calls == [2] and [state.name for state in scheduler.queue.states.values()] == ["done"] * 2


def test_a_pack_that_is_killed_is_made_again_one_by_one(made, roots, store, tmp_path):
    """In mid-pack, by the system; what comes of it is what comes of each alone."""
    recipes = [evaluation(made, lr=0.001 * number, epochs=20) for number in range(1, 4)]
    scheduler, runner = scheduler_of(recipes, store, roots, tmp_path)
    pool, killed = WorkerPool(1, runner), []
    events = pool.events

    def kill_once(timeout_s: float):
        for event in events(timeout_s):
            if isinstance(event, Progressed) and not killed:
                assert len(pool._workers[0].keys) == 3
                killed.append(pool._workers[0].process.pid)
                os.kill(killed[0], signal.SIGKILL)
            yield event

    pool.events = kill_once
    run_in_workers(pool, scheduler)
    assert killed and [state.name for state in scheduler.queue.states.values()] == ["done"] * 3
    for recipe in recipes:
        entry = store.find("evaluation", recipe.key)
        alone = perform.perform(recipe, store, roots, tmp_path / "alone" / recipe.key)
        assert "pack" not in entry.made and entry.files["curve.parquet"] == alone.files["curve.parquet"]


def test_a_device_without_memory_for_the_pack_has_it_made_one_by_one(made, roots, store, tmp_path, monkeypatch):
    recipes = [evaluation(made), evaluation(made, lr=0.01)]

    def full(*_pack, **_options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(perform, "perform_pack", full)
    scheduler, runner = scheduler_of(recipes, store, roots, tmp_path)
    said: list[Ended] = []
    assert not runner.run([to_json(one) for one in recipes], said.append, lambda: False)
    assert [(one.status, one.broken) for one in said] == [("oom", True)] * 2
    run_in_process(scheduler, runner)
    assert [state.name for state in scheduler.queue.states.values()] == ["done"] * 2


def test_a_pack_opens_its_set_once(made, roots, store, tmp_path, monkeypatch):
    opened, open_set = [], SyntheticSet.open
    monkeypatch.setattr(SyntheticSet, "open", lambda folder, **how: opened.append(folder) or open_set(folder, **how))
    recipes = [evaluation(made, lr=0.001 * number, epochs=1) for number in range(1, 4)]
    perform.perform_pack([perform.Part(one, tmp_path / one.key) for one in recipes], store, roots)
    assert len(opened) == 1


def test_what_is_to_be_tried_alone_joins_no_pack(made, roots, store, tmp_path):
    recipes = [evaluation(made, lr=0.001 * number) for number in range(1, 4)]
    scheduler, _maker = scheduler_of(recipes, store, roots, tmp_path)
    scheduler.queue.again(recipes[2].key, "its process was killed")
    assert [one.key for one in scheduler.next()] == [recipes[0].key, recipes[1].key]
