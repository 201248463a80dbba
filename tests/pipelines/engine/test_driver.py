"""The driver's decisions, with trials played by the test: no Ray."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from small_recipes import Stub

from pipelines.engine.damage import READINGS
from pipelines.engine.driver import DEATHS, Driver
from pipelines.engine.eta import Eta
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import TrialEnd
from pipelines.engine.progress import LineView
from pipelines.grid.queue import Demand, RecipeQueue
from rd3.errors import StoreError
from tests.pipelines.engine.fakes import FakeBooks, FakeJobs, FixedCluster


class Play:
    """A driver, and the trials that it thinks are out."""

    def __init__(
        self,
        recipes: dict[str, Stub],
        *,
        books: FakeBooks | None = None,
        cpus: float = 2.0,
        max_concurrent: int | None = None,
    ):
        kinds = {recipe.kind for recipe in recipes.values()}
        self.queue = RecipeQueue(recipes, demands=dict.fromkeys(kinds, Demand(1.0)))
        self.books = books or FakeBooks()
        self.interrupts = Interrupts()
        self.out = io.StringIO()
        self.driver = Driver(
            self.queue,
            LineView("grid", self.queue, Eta({}), {}, self.out),
            FakeJobs(),
            self.books,
            FixedCluster(cpus),
            self.interrupts,
            max_concurrent=max_concurrent,
        )
        self._count = 0

    def start(self) -> tuple[str, str] | None:
        """(trial, key) of the next trial."""
        trial_id = f"trial{self._count}"
        self._count += 1
        config = self.driver.next_config(trial_id)
        return None if config is None else (trial_id, json.loads(config["jobs"])[0]["key"])

    def end(self, trial_id: str, end: TrialEnd) -> None:
        self.driver.on_end(trial_id, {"number": 0, "end": end.to_json()})


def done(key: str) -> TrialEnd:
    return TrialEnd("done", entry={"key": key})


CHAIN = {"s": Stub("set", "s"), "e": Stub("evaluation", "e", ("set", "s"))}


def test_a_finished_recipe_is_kept_before_its_children_start():
    play = Play(CHAIN)
    trial_id, key = play.start()
    assert key == "s"
    assert play.start() is None
    play.end(trial_id, done("s"))
    assert play.books.kept == ["s"]
    assert play.start()[1] == "e"


def test_a_failure_is_told_and_closes_what_needs_it():
    play = Play(CHAIN)
    play.end(play.start()[0], TrialEnd("diverged", "The loss is nan."))
    assert play.start() is None
    assert play.queue.finished
    assert play.queue.unsuccessful["e"].status == "blocked"
    assert "set s s: diverged" in play.out.getvalue()
    assert "The loss is nan." in play.out.getvalue()


def test_a_dead_process_is_replaced_a_few_times():
    play = Play(CHAIN)
    for _death in range(DEATHS - 1):
        play.driver.on_death(play.start()[0], "RayActorError")
    trial_id, key = play.start()
    assert key == "s"
    play.driver.on_death(trial_id, "RayActorError")
    assert play.queue.unsuccessful["s"].status == "killed"
    assert play.books.failures == [("set", "s", "killed")], "once, at the end"
    assert f"died {DEATHS} times; the usual cause is too little memory" in play.queue.unsuccessful["s"].reason


def test_a_process_that_ray_killed_for_its_memory_is_not_started_again():
    play = Play(CHAIN)
    play.driver.on_death(play.start()[0], "OutOfMemoryError: the node ran low")
    assert play.queue.unsuccessful["s"].status == "oom"
    assert play.books.failures == [("set", "s", "oom")]


def test_a_damaged_parent_is_forgotten_and_made_again_once():
    play = Play(CHAIN)
    play.end(play.start()[0], done("s"))
    for attempt in range(2):
        trial_id, key = play.start()
        assert key == "e"
        play.end(trial_id, TrialEnd("failed", "Set s lacks its file.", broken=[("set", "s")]))
        if attempt == 0:
            assert play.books.forgotten == [("set", "s")]
            trial_id, key = play.start()
            assert key == "s"
            play.end(trial_id, done("s"))
    assert play.queue.unsuccessful["e"] == ("failed", "Set s lacks its file.")
    assert play.books.forgotten == [("set", "s")]


def test_a_damaged_parent_that_this_grid_cannot_make_is_only_told():
    play = Play({"e": CHAIN["e"]})
    play.end(play.start()[0], TrialEnd("failed", "Set s lacks its file.", broken=[("set", "s")]))
    assert play.queue.unsuccessful["e"] == ("failed", "Set s lacks its file.")
    assert play.books.forgotten == []


BROKEN = TrialEnd("failed", "Set s lacks its file.", broken=[("set", "s")])
FAMILY = {"s": Stub("set", "s"), **{key: Stub("evaluation", key, ("set", "s")) for key in ("e1", "e2")}}


def in_flight() -> tuple[Play, str, str]:
    """Two workers are at the two children of a set; returns the play and the children's trials."""
    play = Play(FAMILY)
    play.end(play.start()[0], done("s"))
    (first, e1), (second, e2) = play.start(), play.start()
    assert (e1, e2) == ("e1", "e2")
    return play, first, second


@pytest.mark.parametrize("late", [False, True], ids=["while the parent is made again", "when it has been"])
def test_children_of_a_damaged_parent_wait_for_the_new_one(late: bool):
    play, first, second = in_flight()
    play.end(first, BROKEN)
    trial, key = play.start()
    assert key == "s" and play.start() is None, "its children wait"
    if late:
        play.end(trial, done("s"))
        play.end(second, BROKEN)
    else:
        play.end(second, BROKEN)
        play.end(trial, done("s"))
    for key in ("e1", "e2"):
        trial, started = play.start()
        assert started == key
        play.end(trial, done(key))
    assert play.queue.finished and play.queue.unsuccessful == {}
    assert play.books.forgotten == [("set", "s")]
    assert play.books.verified == ["s"], "what is said of the earlier files is not asked of the new ones"


def test_a_parent_that_is_damaged_again_ends_its_children_and_is_not_made_a_third_time():
    play, first, second = in_flight()
    play.end(first, BROKEN)
    play.end(second, BROKEN)
    play.end(play.start()[0], done("s"))
    for trial, _key in [play.start(), play.start()]:
        play.end(trial, BROKEN)
    assert play.queue.finished
    assert play.queue.unsuccessful == dict.fromkeys(("e1", "e2"), ("failed", "Set s lacks its file."))
    assert (play.books.kept, play.books.forgotten) == (["s", "s"], [("set", "s")])


def test_a_child_whose_parent_fails_when_it_is_made_again_is_blocked():
    play, first, second = in_flight()
    play.end(first, BROKEN)
    play.end(play.start()[0], TrialEnd("diverged", "The loss is nan."))
    play.end(second, BROKEN)
    assert play.queue.finished
    assert [play.queue.unsuccessful[key].status for key in FAMILY] == ["diverged", "blocked", "blocked"]
    assert "evaluation e2 e2: blocked" in play.out.getvalue()


def test_one_worker_that_reads_badly_costs_its_recipe_and_nothing_else():
    play, first, second = in_flight()
    play.books.intact.add("s")
    play.end(first, BROKEN)
    play.end(second, done("e2"))
    for _attempt in range(READINGS - 1):
        trial, key = play.start()
        assert key == "e1"
        play.end(trial, BROKEN)
    assert play.queue.finished
    status, reason = play.queue.unsuccessful["e1"]
    assert (status, "At their source the files are intact. Fix: check the disk" in reason) == ("failed", True)
    assert play.books.forgotten == [] and play.books.kept == ["s", "e2"]


def test_a_reading_error_that_passes_costs_an_attempt():
    play, first, _second = in_flight()
    play.books.intact.add("s")
    play.end(first, BROKEN)
    play.end(play.start()[0], done("e1"))
    assert play.queue.unsuccessful == {} and play.books.forgotten == []


def test_children_that_read_the_same_at_the_same_time_are_verified_once():
    play, first, second = in_flight()
    play.books.intact.add("s")
    play.end(first, BROKEN)
    play.end(second, BROKEN)
    assert play.books.verified == ["s"]
    play.end(play.start()[0], BROKEN)
    assert play.books.verified == ["s", "s"]


def test_a_ledger_that_cannot_be_written_stops_everything():
    books = FakeBooks(StoreError("No space left."))
    play = Play({"a": Stub("set", "a"), "b": Stub("set", "b"), "c": Stub("set", "c")}, books=books)
    play.end(play.start()[0], done("a"))
    assert isinstance(play.driver.fatal, StoreError)
    assert play.start() is None


def test_no_more_than_asked_for_and_none_when_stopping():
    play = Play({name: Stub("set", name) for name in "abcde"}, max_concurrent=3, cpus=1.0)
    assert [play.start() is not None for _trial in range(4)] == [True, True, True, False]
    play.end("trial0", done("a"))
    play.interrupts.name = "SIGTERM"
    assert play.start() is None


def test_evaluations_share_a_gpu_and_sets_have_it_alone():
    recipes = {f"e{n}": Stub("evaluation", f"e{n}") for n in range(6)}
    recipes |= {f"s{n}": Stub("set", f"s{n}") for n in range(2)}
    queue = RecipeQueue(recipes, demands={"evaluation": Demand(1.0, 0.25), "set": Demand(1.0, 1.0)})
    first = [queue.take(16, 1) for _slot in range(5)]
    assert [recipe and recipe.kind for recipe in first] == ["evaluation"] * 4 + [None]
    for _more in range(6):
        for key in list(queue.running):
            queue.finish(key)
        while queue.take(16, 1):
            pass
        kinds = {queue.recipes[key].kind for key in queue.running}
        assert len(kinds) <= 1 and (kinds != {"set"} or len(queue.running) == 1)
    assert queue.finished


@pytest.mark.parametrize("broken", [[], [("set", "elsewhere")]])
def test_a_failure_without_a_reason_is_one(broken: list[tuple[str, str]]):
    play = Play({"e": CHAIN["e"]})
    play.end(play.start()[0], TrialEnd("failed", broken=broken))
    assert play.queue.unsuccessful["e"] == ("failed", "")


@pytest.mark.parametrize("result", [None, {}, {"fraction": 0.5}])
def test_a_trial_that_ends_without_a_word_has_failed(result: Any):
    play = Play(CHAIN)
    play.driver.on_end(play.start()[0], result)
    assert play.queue.unsuccessful["s"].status == "failed"
