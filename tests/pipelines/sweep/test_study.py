"""The order of trials: the same whatever happens on the way, and pruned by a rule that a plain loop can repeat."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import optuna
import pytest

from pipelines.sweep.files import load_sweep
from pipelines.sweep.study import STARTUP_TRIALS, Ended, Pruning, RunningTrial, Tuning
from pipelines.sweep.values import Sweep
from rd3.errors import DataCorrupt

EPOCHS = 20


def sweep(**changed: Any) -> Sweep:
    return load_sweep("demo").model_copy(update={"trials": 14, "batch": 4, "validate_epochs": 5, **changed})


def score(point: dict[str, Any]) -> float:
    """A landscape with one summit."""
    return 90 - 10 * abs(point["zeta"] - 1.5) - 400 * abs(point["lr"] - 0.01) - abs(point["temperature"] - 4)


def ended(tuning: Tuning, number: int, point: dict[str, Any], before: list[Any]) -> Ended:
    """A trial whose accuracy grows evenly."""
    contest = RunningTrial(tuning.name, number, before, Pruning(tuning.sweep.pruner, 5, EPOCHS))
    for epoch in range(5, EPOCHS, 5):
        if contest.report(epoch, score(point) * epoch / EPOCHS):
            return Ended("PRUNED", None, contest.curve, contest.rungs, {"stopped": "pruned"})
    return Ended("COMPLETE", score(point), contest.curve, contest.rungs)


def play(asked: Sweep, *, deaths: Iterable[int] = (), backwards: bool = False, storage: Any = None) -> list[Any]:
    """All trials; a driver dies before it writes each of ``deaths``, and another one goes on."""
    storage = storage or optuna.storages.InMemoryStorage()
    left = set(deaths)
    while True:
        tuning = Tuning(asked, "study", storage)
        try:
            while batch := tuning.next_batch():
                before = tuning.before(min(batch))
                order = sorted(batch, reverse=backwards)  # whichever worker is faster
                found = {number: ended(tuning, number, batch[number], before) for number in order}
                for number, point in batch.items():
                    if number in left:
                        left.discard(number)
                        raise InterruptedError
                    tuning.tell(number, point, found[number], datetime.now())
            return tuning.trials()
        except InterruptedError:
            continue


def plain(trials: list[Any]) -> list[tuple[Any, ...]]:
    return [(one.number, one.state.name, one.params, one.value, one.intermediate_values) for one in trials]


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_deaths_and_speed_change_nothing(sampler, pruner):
    asked = sweep(sampler=sampler, pruner=pruner)
    quiet = plain(play(asked))
    assert [number for number, *_rest in quiet] == list(range(14))
    assert len({str(params) for _number, _state, params, *_rest in quiet}) == 14
    assert plain(play(asked, deaths={0, 2, 7, 8, 13}, backwards=True)) == quiet
    assert {state for _number, state, *_rest in quiet} == ({"COMPLETE"} if pruner == "none" else {"COMPLETE", "PRUNED"})


def test_another_seed_is_another_sequence():
    assert plain(play(sweep(seed=1))) != plain(play(sweep()))


def test_the_sampler_learns_and_random_does_not():
    more = {"trials": 60, "pruner": "none"}
    late = {
        name: statistics.mean(one.value for one in play(sweep(sampler=name, **more))[30:]) for name in ("tpe", "random")
    }
    assert late["tpe"] > late["random"] + 5


def test_the_median_rule_as_a_plain_loop():
    trials = play(sweep(trials=30))
    assert any(one.state.name == "PRUNED" for one in trials)
    for one in trials:
        complete = [other for other in trials[: one.number - one.number % 4] if other.state.name == "COMPLETE"]
        best, expected = float("-inf"), "COMPLETE"
        for epoch in range(5, EPOCHS, 5):
            best = max(best, score(one.params) * epoch / EPOCHS)
            others = [other.intermediate_values[epoch] for other in complete]
            if len(complete) >= STARTUP_TRIALS and best < statistics.median(others):
                expected = "PRUNED"
                break
        assert one.state.name == expected, one.number


def test_trials_of_one_batch_do_not_know_each_other():
    pruning = Pruning("successive_halving", 5, EPOCHS)
    storage = optuna.storages.InMemoryStorage()
    play(sweep(trials=4, pruner="successive_halving"), storage=storage)
    before = Tuning(sweep(trials=8), "study", storage).before(4)
    first, second = (RunningTrial("study", number, before, pruning) for number in (4, 5))
    low, high = 0.5, 99.0
    assert [first.report(5, high), second.report(5, high)] == [False, False]
    assert RunningTrial("study", 5, before, pruning).report(5, low)


def test_a_grid_has_every_point_once():
    asked = sweep(sampler="grid", trials=9, pruner="none")
    asked = asked.model_copy(update={"space": asked.space[2:]})
    tuning = Tuning(asked, "study", optuna.storages.InMemoryStorage())
    while batch := tuning.next_batch():
        for number, point in batch.items():
            tuning.tell(number, point, Ended("COMPLETE", 1.0), datetime.now())
    points = {(one.params["temperature"], one.params["batch_size"]) for one in tuning.trials()}
    assert points == {(temperature, size) for temperature in (1, 4, 20) for size in (10, 25, 50)}


def test_the_best_is_complete_and_the_first_of_equals():
    tuning = Tuning(sweep(trials=4), "study", optuna.storages.InMemoryStorage())
    assert tuning.best() is None
    ends = [
        Ended("PRUNED", None, {5: 99.0}), Ended("COMPLETE", 50.0), Ended("COMPLETE", 60.0), Ended("COMPLETE", 60.0)
    ]  # fmt: skip
    for (number, point), end in zip(tuning.next_batch().items(), ends, strict=True):
        tuning.tell(number, point, end, datetime.now())
    assert (tuning.best().number, tuning.best().value) == (2, 60.0)
    assert tuning.next_batch() == {}


@pytest.fixture
def journal(tmp_path) -> Callable[[], Any]:
    from pipelines.sweep.storage import open_storage

    return lambda: open_storage("journal", "", tmp_path / "sweeps" / "one.journal")


def test_a_journal_goes_on_where_a_killed_driver_left_its_lock(journal, tmp_path):
    tuning = Tuning(sweep(trials=2), "study", journal())
    [(number, point), second] = tuning.next_batch().items()
    tuning.tell(number, point, Ended("COMPLETE", 1.0, {5: 1.0}, facts={"evaluations": ["k"]}), datetime.now())
    (tmp_path / "sweeps" / "one.journal.lock").symlink_to(tmp_path / "sweeps" / "one.journal")
    again = Tuning(sweep(trials=2), "study", journal())
    assert again.next_batch() == dict([second])
    again.tell(*second, Ended("PRUNED", None, {5: 0.5}), datetime.now())
    assert [one.state.name for one in again.trials()] == ["COMPLETE", "PRUNED"]
    assert again.trials()[0].user_attrs == {"evaluations": ["k"]}


DAMAGE: dict[str, Callable[[list[bytes]], bytes]] = {
    "half of the last record": lambda lines: b"".join(lines)[: -len(lines[-1]) // 2],
    "no end of line": lambda lines: b"".join(lines)[:-1],
    "two thirds gone": lambda lines: b"".join(lines)[: len(b"".join(lines)) // 3],
    "zeros behind": lambda lines: b"".join(lines) + bytes(300),
    "zeros for the last record": lambda lines: b"".join(lines[:-1]) + bytes(len(lines[-1])),
    "a record written behind a half": lambda lines: b"".join(lines[:-2]) + lines[-2][:40] + lines[-1],
    "zeros alone": lambda lines: bytes(sum(map(len, lines))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_journal_with_a_damaged_end_goes_on_from_its_whole_records(journal, tmp_path, damage, capsys):
    path, asked = tmp_path / "sweeps" / "one.journal", sweep(trials=9)
    expected = plain(play(asked, storage=journal()))
    with open(path, "rb") as stream:
        lines = stream.readlines()
    damaged = DAMAGE[damage](lines)
    path.write_bytes(damaged)
    storage = journal()
    kept = path.read_bytes()
    assert kept in [b"".join(lines[:whole]) for whole in range(len(lines) + 1)]
    assert (tmp_path / "sweeps" / "one.journal.damaged").read_bytes() == damaged
    said = f"{path} ended in a damaged record, which was cut off after {kept.count(bytes([10]))} whole ones; the file"
    assert capsys.readouterr().err.startswith(said)
    assert plain(play(asked, storage=storage)) == expected
    assert plain(play(asked, storage=journal())) == expected
    assert capsys.readouterr().err == ""


def test_damage_before_the_end_of_a_journal_is_named_and_the_journal_may_be_removed(journal, tmp_path):
    path, asked = tmp_path / "sweeps" / "one.journal", sweep(trials=9)
    expected = plain(play(asked, storage=journal()))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[3][:50] + lines[4], *lines[5:]]))
    before = path.read_bytes()
    with pytest.raises(DataCorrupt, match=r"is damaged in line 4, and whole records follow.*remove it") as caught:
        journal()
    assert path.read_bytes() == before and [one.name for one in path.parent.iterdir()] == [path.name]
    subprocess.run(str(caught.value.fix).partition("ledger: ")[2].partition(";")[0], shell=True, check=True)
    assert plain(play(asked, storage=journal())) == expected
