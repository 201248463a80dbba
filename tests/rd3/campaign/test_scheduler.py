"""A campaign with workers that only pretend: deaths, deadlines, interruptions."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_recipes import a_set, teacher
from stand_in_runner import StandIn

from rd3.campaign.estimates import Estimates
from rd3.campaign.queue import Queue
from rd3.campaign.runner import Ended, Progressed
from rd3.campaign.scheduler import Scheduler, run_in_process, run_in_workers
from rd3.campaign.view import View
from rd3.campaign.workers import WorkerPool
from rd3.datasets import Roots, dataset_info
from rd3.errors import BadValue
from rd3.planning.cost import CPU_THREAD


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduler_of(recipes, tmp_path, **options) -> Scheduler:
    queue = Queue(recipes, lambda _kind, _key: False)
    info_of = lambda name: dataset_info(name, Roots(None, tmp_path))  # noqa: E731
    estimates = Estimates(queue.recipes, lambda _kind, _key: None, info_of, CPU_THREAD)
    return Scheduler(queue, estimates, View(io.StringIO(), 2), **options)


def states(scheduler: Scheduler) -> list[str]:
    return [state.name for state in scheduler.queue.states.values()]


def attempts(folder: Path, recipe) -> list[tuple[int, float]]:
    """(process, time) of every begin, and of every end that was lived to see."""
    lines = (folder / recipe.key).read_text().split("\n")[:-1]
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def test_workers_live_on_and_share_the_work(tmp_path):
    recipes = [a_set(seed) for seed in range(6)]
    scheduler = scheduler_of(recipes, tmp_path)
    run_in_workers(WorkerPool(2, StandIn(tmp_path, {})), scheduler)
    assert states(scheduler) == ["done"] * 6
    assert 1 <= len({pid for recipe in recipes for pid, _at in attempts(tmp_path, recipe)}) <= 2


@pytest.mark.parametrize(("behaviour", "end"), [("dies", "killed"), ("dies once", "done"), ("oom once", "done")])
def test_a_lost_worker_costs_its_recipe_one_more_attempt_alone(tmp_path, behaviour, end):
    first, lost, *others = (a_set(seed) for seed in range(5))
    child = a_set(9, init=lost.key)
    scheduler = scheduler_of([first, lost, *others, child], tmp_path)
    run_in_workers(WorkerPool(2, StandIn(tmp_path, {lost.key: behaviour})), scheduler)
    assert states(scheduler) == ["done", end, "done", "done", "done", "done" if end == "done" else "blocked"]
    tried = attempts(tmp_path, lost)
    assert len({pid for pid, _at in tried}) == 2, "two processes, two attempts"
    second = tried[-2 if end == "done" else -1][1]
    assert all(attempts(tmp_path, other)[-1][1] < second for other in (first, *others)), "after all the others"
    used = {pid for other in (first, *others) for pid, _at in attempts(tmp_path, other)}
    assert tried[-1][0] not in used, "no memory of others is held"
    if end == "killed":
        assert scheduler.queue.states[lost.key].reason == "its process was killed by SIGKILL"


def test_at_the_deadline_workers_stop_and_what_they_had_is_unfinished(tmp_path):
    waits, later = a_set(0), a_set(1)
    child = a_set(2, init=waits.key)
    clock = Clock()
    scheduler = scheduler_of([waits, child, later], tmp_path, seconds=100.0, clock=clock)
    pool = WorkerPool(1, StandIn(tmp_path, {waits.key: "waits"}))
    events = pool.events

    def moving(timeout_s: float):
        for event in events(timeout_s):
            clock.now = 100.0 + 91.0  # a tenth is kept for stopping
            yield event

    pool.events = moving
    run_in_workers(pool, scheduler)
    assert states(scheduler) == ["unfinished", "waiting", "waiting"]
    assert len(attempts(tmp_path, waits)) == 2, "it came to its end by itself"


def test_a_worker_that_does_not_hear_is_ended(tmp_path):
    deaf = a_set(0)
    clock = Clock()
    scheduler = scheduler_of([deaf], tmp_path, seconds=100.0, clock=clock)
    pool = WorkerPool(1, StandIn(tmp_path, {deaf.key: "deaf"}))
    events = pool.events

    def moving(timeout_s: float):
        for event in events(timeout_s):
            clock.now = 100.0 + 91.0  # it has begun; a tenth is kept for stopping
            yield event
        if scheduler.must_stop():
            clock.now += 1.0

    pool.events = moving
    run_in_workers(pool, scheduler)
    assert states(scheduler) == ["unfinished"]
    with pytest.raises(ProcessLookupError):
        os.kill(attempts(tmp_path, deaf)[0][0], 0)


def test_an_interruption_stops_as_a_deadline_does(tmp_path):
    waits, later = a_set(0), a_set(1)
    scheduler = scheduler_of([waits, later], tmp_path)
    pool = WorkerPool(1, StandIn(tmp_path, {waits.key: "waits"}))
    events = pool.events

    def interrupting(timeout_s: float):
        for event in events(timeout_s):
            scheduler.interrupted = True
            yield event

    pool.events = interrupting
    run_in_workers(pool, scheduler)
    assert states(scheduler) == ["unfinished", "waiting"]


def test_nothing_is_started_that_hardly_fits_and_too_little_time_is_said(tmp_path):
    scheduler = scheduler_of([teacher(epochs=100_000)], tmp_path, seconds=0.02, clock=Clock())
    run_in_process(scheduler, StandIn(tmp_path, {}))
    assert states(scheduler) == ["waiting"]
    with pytest.raises(
        BadValue, match=r"--minutes 0.000333333 is too short to run anything: teacher resnet18_w16 digits"
    ) as caught:
        scheduler.check_anything_fits()
    assert re.search(
        r"takes about \d+ h \d+ min, 3 s for each of its 100000 parts, which are kept", caught.value.message
    )


def test_in_one_process_the_same_course_is_run_without_a_second_attempt(tmp_path):
    fails, oom, fine = (a_set(seed) for seed in range(3))
    child = a_set(9, init=fails.key)
    scheduler = scheduler_of([fails, oom, child, fine], tmp_path)
    run_in_process(scheduler, StandIn(tmp_path, {fails.key: "fails", oom.key: "oom once"}))
    assert states(scheduler) == ["failed", "oom", "blocked", "done"]
    scheduler.view.summary(scheduler.queue)
    said = scheduler.view.out.getvalue()
    assert "failed: it was told to | 0/4 done, 1 failed, 1 blocked" in said
    assert f"blocked (1): its set random digits ipc1 ({fails.key[:12]}) failed: it was told to" in said


def test_in_one_process_what_a_broken_recipe_kept_from_starting_is_unfinished(tmp_path):
    class BreaksOff(StandIn):
        def run(self, *_arguments):
            return False

    scheduler = scheduler_of([a_set(0)], tmp_path)
    run_in_process(scheduler, BreaksOff(tmp_path, {}))
    assert states(scheduler) == ["unfinished"] and not scheduler.running


def test_after_a_device_error_a_single_process_starts_nothing_more(tmp_path):
    """Every later call to the device would fail in the same process."""
    first, fails, later = (a_set(seed) for seed in range(3))
    scheduler = scheduler_of([first, fails, later], tmp_path)
    run_in_process(scheduler, StandIn(tmp_path, {fails.key: "device fails"}))
    assert states(scheduler) == ["done", "failed", "waiting"]
    assert "run again for what has not started" in scheduler.view.out.getvalue()
    again = scheduler_of([fails, later], tmp_path)
    run_in_workers(WorkerPool(1, StandIn(tmp_path, {fails.key: "device fails"})), again)  # each error costs a process
    assert states(again) == ["failed", "done"]


def test_a_resumed_recipe_says_nothing_about_the_work_of_its_earlier_attempt(tmp_path):
    resumed, other = teacher(0, epochs=100), teacher(1, epochs=100)
    clock = Clock()
    scheduler = scheduler_of([resumed, other], tmp_path, clock=clock)
    planned = scheduler.estimates.planned(resumed.key)
    assert scheduler.next() == [resumed]
    began = clock.now
    clock.now += 0.001 * planned
    scheduler.handle(Progressed(resumed.key, 0.9, ""))
    clock.now += 0.2 * planned  # a tenth of the work takes a fifth of the planned time: half as fast as planned
    scheduler.handle(Ended(resumed.key, "done", "", clock.now - began))
    assert scheduler.estimates.seconds(other.key) == pytest.approx(2 * planned)


def test_workers_leave_when_their_campaign_is_killed(tmp_path):
    script = tmp_path / "campaign.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from small_recipes import a_set\nfrom stand_in_runner import StandIn\n"
        "from rd3.campaign.workers import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(1, StandIn(Path(sys.argv[1]), {a_set().key: 'waits'}))\n"
        "    pool.submit([a_set()])\n"
        "    while True:\n"
        "        list(pool.events(1.0))\n"
    )
    here = Path(__file__).parents[3]
    paths = os.pathsep.join([str(here), str(here / "tests" / "integration")])
    campaign = subprocess.Popen([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": paths})
    started = tmp_path / a_set().key
    while not started.exists() or not started.read_text():
        assert campaign.poll() is None
        time.sleep(0.05)
    [worker] = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    campaign.send_signal(signal.SIGKILL)
    campaign.wait()
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < end, "the worker outlives its campaign"
        time.sleep(0.05)
