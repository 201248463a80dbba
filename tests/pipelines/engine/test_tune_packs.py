"""Packs from the driver's side, with trials played by the test: who goes together, and how each of them ends."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import trial as worker
from pipelines.engine.attempt import Unfit
from pipelines.engine.driver import DEATHS, Driver
from pipelines.engine.eta import Eta
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import JOBS, TrialEnd
from pipelines.engine.progress import LineView
from pipelines.engine.workers import ThisProcess
from pipelines.grid.queue import Demand, RecipeQueue
from rd3.errors import RD3Error
from rd3.evaluation.packing import Views
from rd3.evaluation.sharing import LogitsCache
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation, Recipe, SetRecipe
from tests.pipelines.engine.fakes import FakeBooks, FakeJobs, FixedCluster

DATA = {"data": Data(name="digits", fingerprint="f"), "classes": "c", "resolution": 32}
SETS = [SetRecipe(**DATA, method="random", version=1, settings={}, ipc=1, set_seed=seed) for seed in range(2)]
ONE = dict.fromkeys(("set", "evaluation"), Demand(1.0))


def evaluation(made: SetRecipe = SETS[0], seed: int = 0, **fields: Any) -> EvaluationRecipe:
    values = {"epochs": 2, "labels": "hard"} | fields
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=10, overrides=values)
    return EvaluationRecipe.of(
        made,
        teachers=[],
        protocol=protocol,
        student="convnet",
        student_seed=seed,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
    )


def alike(count: int, **fields: Any) -> list[EvaluationRecipe]:
    """Evaluations of equal views."""
    return [evaluation(lr=0.001 * number, **fields) for number in range(1, count + 1)]


class Play:
    """A driver, and the trials that it thinks are out.  The sets are there."""

    def __init__(
        self,
        recipes: list[Recipe],
        devices: tuple[float, float] = (1.0, 0.0),
        demands: dict[str, Demand] = ONE,
        made: tuple[SetRecipe, ...] = tuple(SETS),
        each_s: float = 0.0,
        **options: Any,
    ):
        keyed = {recipe.key: recipe for recipe in (*SETS, *recipes)}
        costs_s = {recipe.key: each_s for recipe in recipes}
        self.queue = RecipeQueue(keyed, reused=[one.key for one in made], demands=demands, costs_s=costs_s)
        self.books = FakeBooks()
        self.learnt: list[str] = []
        eta = Eta({})
        eta.finished = lambda key, *_how: self.learnt.append(key)  # type: ignore[method-assign]
        self.out = io.StringIO()
        self.driver = Driver(
            self.queue,
            LineView("grid", self.queue, eta, {}, self.out),
            FakeJobs(),
            self.books,
            FixedCluster(*devices),
            Interrupts(),
            **options,
        )
        self._count = 0

    def start(self) -> tuple[str, list[str]]:
        """(trial, keys) of the next trial; no keys where there is none."""
        self._count += 1
        config = self.driver.next_config(f"trial{self._count}")
        return f"trial{self._count}", [] if config is None else [one["key"] for one in json.loads(config["jobs"])]

    def say(self, trial: str, number: int, end: TrialEnd) -> dict[str, Any]:
        said = {"number": number, "end": end.to_json()}
        self.driver.on_report(trial, said)
        return said


def done(key: str, pack: int = 1) -> TrialEnd:
    return TrialEnd("done", entry={"key": key, "made": {"pack": pack} if pack > 1 else {}})


def test_what_is_ready_is_spread_over_the_devices():
    recipes = alike(8)
    assert [len(Play(recipes, (cpus, 0.0)).start()[1]) for cpus in (1, 2, 3, 8, 64)] == [8, 4, 3, 1, 1]
    assert len(Play(recipes, (64.0, 0.0), max_concurrent=2).start()[1]) == 4
    assert len(Play(alike(20)).start()[1]) == 8


def test_other_work_keeps_the_devices_busy_as_well():
    """While two sets are to be made, two evaluations may go out together and leave something to each of two devices."""
    sets = [SETS[0].model_copy(update={"set_seed": seed}) for seed in range(10, 12)]
    play = Play([*alike(2), *sets], (2.0, 0.0))
    assert [len(play.start()[1]) for _device in range(2)] == [2, 1]


def test_on_a_gpu_other_seeds_go_side_by_side_and_a_part_of_it_takes_a_part_of_the_pack():
    recipes = [evaluation(seed=seed) for seed in range(20)]
    whole, quarter = Demand(1.0, 1.0), Demand(1.0, 0.25)
    assert len(Play(recipes, (16.0, 1.0), ONE | {"evaluation": whole}).start()[1]) == 8
    assert len(Play(recipes, (16.0, 1.0), ONE | {"evaluation": quarter}).start()[1]) == 2
    third = Demand(1.0, 0.3)
    assert len(Play(recipes, (16.0, 1.0), ONE | {"evaluation": third}).start()[1]) == 2
    assert len(Play(recipes, (1.0, 0.0)).start()[1]) == 1, "on a CPU only what shares views"


def test_a_pack_takes_the_place_of_one_until_its_last_recipe_has_ended():
    recipes = alike(6)
    play = Play(recipes, (2.0, 0.0))
    (first, keys), (_second, others) = play.start(), play.start()
    assert (len(keys), len(others)) == (3, 2)
    assert play.start()[1] == []
    play.say(first, 0, done(keys[0]))
    play.say(first, 2, done(keys[2]))
    assert play.start()[1] == [], "its worker is not free yet"
    said = play.say(first, 1, done(keys[1]))
    assert play.queue.state(keys[1]) == "running", "the last is heard when the worker is free"
    play.driver.on_end(first, said)
    assert play.books.kept == [keys[0], keys[2], keys[1]]
    assert len(play.start()[1]) == 1


def test_every_recipe_ends_by_itself_and_once():
    play = Play(alike(3))
    trial, keys = play.start()
    play.say(trial, 1, TrialEnd("diverged", "The loss is nan."))
    play.say(trial, 1, TrialEnd("diverged", "The loss is nan."))
    play.say(trial, 0, done(keys[0], pack=3))
    play.driver.on_end(trial, play.say(trial, 2, done(keys[2], pack=3)))
    play.driver.on_end(trial, {"number": 2, "end": done(keys[2]).to_json()})
    assert play.books.kept == [keys[0], keys[2]]
    assert play.queue.unsuccessful == {keys[1]: ("diverged", "The loss is nan.")}
    assert play.queue.finished
    assert play.learnt == [], "times of a pack say nothing of what a recipe takes alone"
    lines = play.out.getvalue().splitlines()
    assert [": done" in line or ": diverged" in line for line in lines] == [True] * 3


def test_what_read_cached_logits_is_not_learnt_from_and_the_last_evaluation_discards_them(tmp_path):
    """Ten evaluations of equal views on one device: a pack of eight writes, the others read."""
    labels = {"labels": "soft"}
    recipes = [one.model_copy(update={"teachers": ("t" * 64,)}) for one in alike(10, **labels)]
    play = Play(recipes, cache_logits_bytes=1000)
    files = [tmp_path / "logits" / f"{Views.of(one).key[:32]}-1.logits" for one in (recipes[0], evaluation(seed=1))]
    files[0].parent.mkdir()
    for path in files:
        path.touch()
    jobs = json.loads(play.driver.next_config("trial0")["jobs"])
    assert [job.cached_logits for job in JOBS.validate_python(jobs)] == [LogitsCache(1000, True)] * 8
    for number, job in enumerate(jobs):
        said = play.say("trial0", number, done(job["key"], pack=8))
    play.driver.on_end("trial0", said)
    play.driver.discard_logits(tmp_path)
    assert all(path.exists() for path in files)
    jobs = json.loads(play.driver.next_config("trial1")["jobs"])
    assert [job.cached_logits for job in JOBS.validate_python(jobs)] == [LogitsCache(1000, False)] * 2
    for number, job in enumerate(jobs):
        said = play.say(
            "trial1", number, TrialEnd("done", entry={"key": job["key"], "made": {"cached_logits": "read"}})
        )
    play.driver.on_end("trial1", said)
    play.driver.discard_logits(tmp_path)
    assert [path.exists() for path in files] == [False, True], "those of others stay"
    assert play.learnt == []


def test_without_a_budget_no_job_caches_logits():
    play = Play([one.model_copy(update={"teachers": ("t" * 64,)}) for one in alike(10, labels="soft")])
    assert {job["cached_logits"] for job in json.loads(play.driver.next_config("trial")["jobs"])} == {None}


def test_progress_is_shown_of_every_recipe():
    play = Play(alike(2))
    trial, keys = play.start()
    play.driver.on_report(trial, {"moved": json.dumps([[0, 0.25, "epoch 1"], [1, 0.5, "epoch 2"]])})
    running = play.driver.view.running
    assert [(running[key].fraction, running[key].note, running[key].pack) for key in keys] == [
        (0.25, "epoch 1", 2),
        (0.5, "epoch 2", 2),
    ]


def test_what_was_made_in_a_pack_and_is_sent_alone_is_not_learnt_from():
    play = Play(alike(1))
    trial, [key] = play.start()
    play.driver.on_end(trial, play.say(trial, 0, done(key, pack=3)))
    assert play.learnt == []
    play = Play(alike(1))
    trial, [key] = play.start()
    play.driver.on_end(trial, play.say(trial, 0, done(key)))
    assert play.learnt == [key]


@pytest.mark.parametrize("reason", ["RayActorError", "OutOfMemoryError: the node ran low"])
def test_a_pack_that_dies_goes_out_again_one_by_one(reason: str):
    play = Play(alike(4))
    trial, keys = play.start()
    play.say(trial, 0, done(keys[0]))
    play.driver.on_report(trial, {"unfit": "OutOfMemoryError: CUDA out of memory."})
    play.driver.on_death(trial, reason)
    assert "its pack ended after OutOfMemoryError: CUDA out of memory.; restarting it alone" in play.out.getvalue()
    for key in keys[1:]:
        trial, alone = play.start()
        assert alone == [key]
        play.driver.on_end(trial, play.say(trial, 0, done(key)))
    assert play.queue.finished and play.books.kept == keys


def test_in_this_process_a_pack_without_room_runs_one_by_one(monkeypatch: pytest.MonkeyPatch):
    def run_jobs(text: str, send: Callable[[dict[str, Any]], None]) -> None:
        first, *others = (job["key"] for job in json.loads(text))
        if others:
            raise Unfit("MemoryError: 2 GiB") from MemoryError("2 GiB")
        send({"number": 0, "end": done(first).to_json()})

    monkeypatch.setattr(worker, "run_jobs", run_jobs)
    play = Play(alike(3))
    ThisProcess().run_queue(play.driver, Path(), Interrupts())
    assert play.books.kept == [one.key for one in alike(3)] and play.queue.finished
    assert "its pack ended after MemoryError: 2 GiB; restarting it alone" in play.out.getvalue()


def test_a_failed_device_ends_the_run_in_this_process(monkeypatch: pytest.MonkeyPatch):
    def run_jobs(text: str, send: Callable[[dict[str, Any]], None]) -> None:
        raise Unfit("RuntimeError: CUDA error: no") from RuntimeError("CUDA error: no")

    monkeypatch.setattr(worker, "run_jobs", run_jobs)
    with pytest.raises(RD3Error, match=r"cannot go on after RuntimeError: CUDA error: no\..*again; it resumes$"):
        ThisProcess().run_queue(Play(alike(3)).driver, Path(), Interrupts())


def test_what_has_died_alone_joins_no_pack_and_says_at_last_why():
    play = Play(alike(3), max_concurrent=3)
    for _death in range(DEATHS):
        trial, [key] = play.start()
        play.driver.on_report(trial, {"unfit": "RuntimeError: CUDA error: unspecified launch failure"})
        play.driver.on_death(trial, "RayActorError")
    assert play.queue.unsuccessful[key].status == "killed"
    assert play.queue.unsuccessful[key].reason == (
        f"its process died {DEATHS} times, most recently after RuntimeError: CUDA error: unspecified launch failure"
    )


def test_a_broken_set_is_made_again_once_for_all_of_a_pack():
    play = Play(alike(3))
    trial, keys = play.start()
    broken = TrialEnd("failed", "Set lacks its file.", broken=[("set", SETS[0].key)])
    for number in range(3):
        said = play.say(trial, number, broken)
    play.driver.on_end(trial, said)
    assert play.books.forgotten == [("set", SETS[0].key)] and play.queue.unsuccessful == {}
    trial, again = play.start()
    assert again == [SETS[0].key]
    play.driver.on_end(trial, play.say(trial, 0, done(SETS[0].key)))
    trial, together = play.start()
    assert together == keys
    play.driver.on_end(trial, play.say(trial, 0, broken))
    assert play.queue.unsuccessful[keys[0]] == ("failed", "Set lacks its file.")


def test_a_recipe_whose_parent_is_broken_goes_back_and_the_others_stay():
    other = evaluation(SETS[1], seed=1)
    play = Play([*alike(2), other])
    trial, keys = play.start()
    assert keys == [one.key for one in alike(2)]
    play.say(trial, 0, TrialEnd("failed", "Set lacks its file.", broken=[("set", SETS[0].key)]))
    play.driver.on_end(trial, play.say(trial, 1, done(keys[1])))
    assert play.books.kept == [keys[1]] and play.queue.state(keys[0]) == "waiting"


def test_nothing_runs_beside_what_takes_whole_devices():
    """Sets with exclusive times have their machine; evaluations are packed before and after, never meanwhile."""
    demands = {"set": Demand(2.0, whole=True), "evaluation": Demand(1.0)}
    recipes = [*alike(4), *(evaluation(SETS[1], lr=0.001 * number) for number in range(1, 5))]
    play = Play(recipes, (2.0, 0.0), demands, made=(SETS[0],))
    seen = []
    while not play.queue.finished:
        out = []
        while (started := play.start())[1]:
            out.append(started)
        kinds = sorted(play.queue.recipes[key].kind for key in play.queue.running)
        assert kinds == ["set"] or "set" not in kinds
        seen.append([len(keys) for _trial, keys in out])
        for trial, keys in out:
            for number, key in enumerate(keys):
                said = play.say(trial, number, done(key))
            play.driver.on_end(trial, said)
    assert seen[0] == [1] and max(seen[1]) > 1 and sum(map(sum, seen)) == 9


def test_a_pack_is_short_beside_all_that_is_left():
    """On two devices, of 24 evaluations of a second each: a quarter of the 12 seconds that are left, and so on."""
    play = Play(alike(24), (2.0, 0.0), each_s=1.0)
    sizes = []
    while not play.queue.finished:
        trial, keys = play.start()
        sizes.append(len(keys))
        for number, key in enumerate(keys):
            said = play.say(trial, number, done(key))
        play.driver.on_end(trial, said)
    assert sizes[:4] == [3, 2, 2, 2] and sizes[-1] == 1 and sum(sizes) == 24
