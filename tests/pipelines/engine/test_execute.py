"""What happens around Ray in a run: signals, reuse without Ray, state that is left, status from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import bookkeeping, trial_log, workers
from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.execute import Failure, Outcome, execute
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import work_folder
from pipelines.engine.status import grid_status
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import Item, Plan
from pipelines.settings import Session
from rd3.errors import StoreError
from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking.ledger.ledger import Ledger
from tracking.place import Place


def set_recipe(seed: int) -> SetRecipe:
    data = Data(name="digits", fingerprint="f")
    return SetRecipe(
        method="random", version=1, settings={}, data=data, classes="c", resolution=32, ipc=1, set_seed=seed
    )


RECIPES = {recipe.key: recipe for recipe in map(set_recipe, range(3))}
KEYS = list(RECIPES)


class SilentTracker:
    """Stands for MLflow; counts what is asked of it."""

    calls: list[str] = []

    def __init__(self, place: Place):
        self.place = place

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: self.calls.append(name) or "7"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    SilentTracker.calls.clear()
    monkeypatch.setattr(bookkeeping, "Tracker", SilentTracker)
    monkeypatch.setattr(workers, "check_platform", lambda *_given: SilentTracker.calls.append("check"))
    place = Place(tracking_uri="", artifacts=str(tmp_path / "artifacts"), home=tmp_path)
    return Session(place.tracking_uri, place.artifacts, place.home)


def plan(*statuses: str, stale: tuple[tuple[str, str], ...] = ()) -> Plan:
    items = [
        Item(key, "set", f"set {place}", status, "no data" if status == "blocked" else "")
        for place, (key, status) in enumerate(zip(KEYS, statuses, strict=True))
    ]
    return Plan("grid", items, stale=list(stale))


def test_nothing_to_run_needs_neither_ray_nor_mlflow(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "ray_cluster", None)
    monkeypatch.setattr(bookkeeping, "Tracker", None)
    outcome = execute(Expansion(RECIPES), plan("reuse", "reuse", "blocked"), session)
    assert outcome.reused == KEYS[:2]
    assert outcome.failed == [Failure(RECIPES[KEYS[2]].label(), KEYS[2], "blocked", "no data")]
    assert outcome.exit_code == 3


def test_exit_codes():
    assert Outcome(done=["a"]).exit_code == 0
    assert Outcome(failed=[Failure("a", "b", "oom", "c")]).exit_code == 3
    assert Outcome(failed=[Failure("a", "b", "oom", "c")], interrupted="SIGINT").exit_code == 130


def test_what_somebody_else_has_made_since_the_plan_is_reused(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "ray_cluster", None)
    ledger = Ledger(session.artifacts)
    leftovers = [work_folder(session.home, "set", key) for key in KEYS]
    leftovers += [work_folder(session.home, "share", f"{key}-1of2") for key in KEYS]
    for folder in leftovers:
        folder.mkdir(parents=True)
    for key in KEYS[:2]:
        ledger.add(Entry(kind="set", key=key, recipe={}, result={}))
    outcome = execute(Expansion(RECIPES), plan("run", "run", "blocked"), session)
    assert outcome.reused == KEYS[:2]
    assert [folder.exists() for folder in leftovers] == [False, False, True] * 2


def test_what_the_plan_took_for_damaged_and_is_intact_is_reused(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "ray_cluster", None)
    files, ledger = tmp_path / "set", Ledger(session.artifacts)
    files.mkdir()
    (files / "images").write_bytes(b"pixels")
    entry = Entry(
        kind="set", key=KEYS[0], recipe=RECIPES[KEYS[0]].model_dump(mode="json"), result={},
        files=sha256_files(files), artifact=files.as_uri(),
    )  # fmt: skip
    ledger.add(entry)
    outcome = execute(Expansion(RECIPES), plan("run", "blocked", "blocked", stale=(("set", KEYS[0]),)), session)
    assert outcome.reused == [KEYS[0]]
    assert ledger.find("set", KEYS[0]) == entry.sealed()


def test_two_drivers_on_one_ledger(session: Session):
    with Ledger(session.artifacts).lease(), pytest.raises(StoreError, match=f"process {os.getpid()} on"):
        execute(Expansion(RECIPES), plan("run", "run", "run"), session)


def test_a_run_that_cannot_start_closes_its_mlflow_runs_and_forgets_what_is_damaged(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    def no_ray(*_arguments: Any) -> Any:
        raise StoreError("no Ray today")

    monkeypatch.setattr(workers, "ray_cluster", no_ray)
    ledger = Ledger(session.artifacts)
    ledger.add(Entry(kind="set", key=KEYS[0], recipe={}, result={}))
    with pytest.raises(StoreError, match="no Ray today"):
        execute(Expansion(RECIPES), plan("run", "run", "run", stale=(("set", KEYS[0]),)), session)
    assert ledger.find("set", KEYS[0]) is None
    assert [event["event"] for event in trial_log.events(session.home, KEYS[0])] == ["forgotten"]
    assert SilentTracker.calls == ["check", "experiment", "close_dead_runs", "close_dead_runs"]
    with ledger.lease():
        """The lease is free again."""


def test_the_first_signal_interrupts_or_is_noted_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.name == "SIGINT"


@pytest.mark.parametrize(("quick_s", "code"), [(3600.0, 7), (0.0, 130)])
def test_a_later_signal_exits_at_once_and_two_quick_ones_count_as_one(quick_s: float, code: int):
    script = (
        "import os, signal\n"
        "from pipelines.engine import interrupts as module\n"
        f"module._QUICK_S = {quick_s}\n"
        "with module.Interrupts() as interrupts:\n"
        "    interrupts.deferred = True\n"
        "    for _signal in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "raise SystemExit(7)\n"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == code


def test_status_from_another_terminal(session: Session):
    ledger = Ledger(session.artifacts)
    expansion = Expansion(RECIPES, labels={KEYS[2]: "the third"})
    ledger.add(Entry(kind="set", key=KEYS[0], recipe={}, result={}))
    for key in KEYS:
        trial_log.append(session.home, "start", "set", key, attempt=1)
    trial_log.append(session.home, "fail", "set", KEYS[2], status="oom", reason="too large")
    trial_log.append(session.home, "start", "set", "of another grid", attempt=1)
    status = grid_status(expansion, ledger, session.home)
    assert status.counts == {"set": {"done": 1, "running": 1, "failed": 1, "missing": 0}}
    assert [item["key"] for item in status.running] == [KEYS[1]]
    assert status.failed == [{"label": "the third", "key": KEYS[2], "status": "oom", "reason": "too large"}]
    assert status.why == {KEYS[2]: "oom: too large"}


def test_status_names_the_failure_behind_what_could_not_be_run(session: Session):
    first = set_recipe(10)
    second = set_recipe(11).model_copy(update={"init": first.key})
    third = set_recipe(12).model_copy(update={"init": second.key})
    other = set_recipe(13)
    expansion = Expansion({one.key: one for one in (first, second, third, other)}, labels={first.key: "set of noise"})
    trial_log.append(session.home, "fail", "set", first.key, status="oom", reason="too large")
    why = grid_status(expansion, Ledger(session.artifacts), session.home).why
    cause = f"its set of noise ({first.key[:12]}) ended as oom: too large"
    assert why == {first.key: "oom: too large", second.key: cause, third.key: cause}
    expansion = Expansion({other.key: other}, imports={other.key: "set must be imported"})
    assert grid_status(expansion, Ledger(session.artifacts), session.home).why == {other.key: "set must be imported"}


def test_a_trial_is_given_the_entries_of_all_that_its_recipe_is_made_from(session: Session):
    ledger = Ledger(session.artifacts)
    start, made = set_recipe(10), set_recipe(11).model_copy(update={"init": set_recipe(10).key})
    for recipe in (start, made, set_recipe(12)):
        ledger.add(Entry(kind="set", key=recipe.key, recipe=recipe.model_dump(mode="json"), result={}))
    books = Bookkeeping(session, ledger.lease(), Interrupts())
    assert list(books.entries([("set", made.key), ("teacher", "ab" * 32)])) == [start.key, made.key]
    ledger.forget("set", made.key)
    assert list(books.entries([("set", made.key)])) == [start.key, made.key], "what was read is not asked for again"
    books.forget("set", made.key)
    assert list(books.entries([("set", made.key)])) == []
    assert books.removed == {made.key}
