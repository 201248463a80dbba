"""The driver of a sweep, without Ray: outages that it sits out, and signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from pipelines.cluster.local import RayDied
from pipelines.commands.sweep import show_intent
from pipelines.grid.catalog import Catalog
from pipelines.grid.values import Chosen
from pipelines.settings import Session
from pipelines.sweep import run
from pipelines.sweep.files import load_sweep
from pipelines.sweep.progress import open_trial_view
from pipelines.sweep.run import SweepRun
from pipelines.sweep.study import Ended, Pruning
from pipelines.sweep.subject import subjects
from pipelines.sweep.worker import Answer, Score, TrialInput
from rd3.errors import BadValue, Unavailable
from rd3.evaluation.packing import Views
from rd3.evaluation.sharing import LogitsCache


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRun:
    """Four trials for one method."""
    monkeypatch.setattr("tracking.ledger.retry.time.sleep", lambda _s: None)
    here = Session(f"sqlite:///{tmp_path / 'm.db'}", str(tmp_path / "artifacts"), tmp_path)
    shipped = load_sweep("demo")
    asked = shipped.model_copy(update={"trials": 4, "methods": shipped.methods[:1]})

    return SweepRun(asked, subjects(asked, Catalog.of(here)), here)


def test_a_set_seed_without_effect_is_said_before_the_start(sweep, capsys):
    asked = sweep.sweep.model_copy(update={"methods": (Chosen(name="herding"),), "set_seed": 3})
    show_intent(asked, subjects(asked, Catalog.of(sweep.session)))
    assert "Method herding has no set seed: its sets are planned with set seed 0 alone." in capsys.readouterr().out


def test_points_that_leave_the_views_as_they_are_share_cached_logits(sweep, tmp_path):
    """Not those with other batches; the study's end deletes what its trials shared."""
    subject = sweep.subjects[0]
    zeta, batch = subject.evaluations({"zeta": 1.25}), subject.evaluations({"batch_size": 3})
    assert subject.cached_logits(zeta, 1000) == {one.key: LogitsCache(1000, True) for one in zeta}
    assert subject.cached_logits(batch, 1000) == subject.cached_logits(zeta, 0) == {}
    path = tmp_path / "logits" / f"{Views.of(zeta[0]).key[:32]}-1.logits"
    path.parent.mkdir()
    path.touch()
    sweep._discard_logits(subject)
    assert path.exists(), "this run keeps none"
    sweep.cache_logits_bytes = 1000
    sweep._discard_logits(subject)
    assert not path.exists()


class Outage:
    """Raises :class:`Unavailable` so many times, then asks."""

    def __init__(self, ask, times: int):
        self.ask, self.times = ask, times

    def __call__(self, *arguments):
        if self.times:
            self.times -= 1
            raise Unavailable("The store does not respond.")
        return self.ask(*arguments)


def test_the_ledger_may_be_away_for_a_while(sweep, monkeypatch):
    outage = Outage(sweep.ledger.find, 3)
    monkeypatch.setattr(sweep.ledger, "find", outage)
    assert sweep._given(sweep.subjects[0].evaluations({})) == []
    assert outage.times == 0


def test_the_tracking_server_may_be_away_when_the_runs_are_opened(sweep, monkeypatch):
    search, made = Outage(sweep.tracker.search, 2), Outage(sweep.tracker.experiment, 2)
    monkeypatch.setattr(sweep.tracker, "search", search)
    monkeypatch.setattr(sweep.tracker, "experiment", made)
    sweep._studies()
    sweep._open()
    assert (search.times, made.times) == (0, 0)
    assert sweep.tracker.client.get_run(sweep.runs.run_id).info.status == "RUNNING"


def test_a_sweep_says_once_for_what_it_waits(sweep, capsys, monkeypatch):
    sweep._retry(Outage(lambda: None, 3))
    assert capsys.readouterr().err == f"{sweep.sweep.name}: waiting: The store does not respond.\n"
    log = io.StringIO()
    sweep._studies()
    subject = sweep.subjects[0]
    with open_trial_view("demo", sweep.outcome.tunings[subject.label], log) as view:
        monkeypatch.setattr(sweep, "view", view)
        sweep._retry(Outage(lambda: None, 3))
    assert log.getvalue() == "demo: waiting: The store does not respond.\n"


def test_a_sweep_says_that_it_waits_for_a_server_that_takes_a_request_and_does_not_answer(sweep, capsys, monkeypatch):
    monkeypatch.setattr(run, "SLOW_S", 0.05)
    said = threading.Event()
    monkeypatch.setattr(sweep, "_say", lambda reason: (SweepRun._say(sweep, reason), said.set()))
    assert sweep._write(lambda: said.wait(60)), "it was to be said while the answer is waited for"
    uri = sweep.session.tracking_uri
    assert capsys.readouterr().err == f"{sweep.sweep.name}: waiting: Writing to MLflow at {uri} takes more than 0 s.\n"
    said.clear()
    monkeypatch.setattr(run, "SLOW_S", 60.0)
    assert sweep._write(lambda: 3) == 3
    assert not said.is_set()


class TasksOfThisProcess:
    """Ray's interface as a sweep uses it, with answers in order instead of workers."""

    def __init__(self, answers: list[Answer]):
        self.answers, self.given = answers, []

    def remote(self, **_options):
        return lambda _task: SimpleNamespace(remote=self.start)

    def start(self, attempt, _before):
        self.given.append(attempt)
        return len(self.given) - 1

    def put(self, value):
        return value

    def get(self, number):
        return self.answers[number]

    def wait(self, references, timeout):
        return references, []

    def cluster_resources(self):
        return {}


def test_a_trial_whose_server_is_away_says_so_and_goes_on_with_its_scores(sweep, monkeypatch, capsys):
    score = Score(curve={4: 20.0}, top1_pct=30.0)
    away = Answer(None, {"k": score}, "MLflow does not respond.", away=True)
    tasks = TasksOfThisProcess([away, away, Answer(None, {}, "done")])
    tasks.exceptions = SimpleNamespace(RayError=KeyError)
    monkeypatch.setitem(sys.modules, "ray", tasks)
    monkeypatch.setattr("pipelines.cluster.local._processes", dict)
    attempt = TrialInput("s", "study", 7, [], Pruning("none", 4, 12), sweep.session, [])
    assert [*sweep._answers({7: attempt}, [])] == [(7, tasks.answers[2])]
    assert capsys.readouterr().err == f"{sweep.sweep.name}: waiting: MLflow does not respond.\n"
    assert [set(one.known) for one in tasks.given] == [set(), {"k"}, {"k"}]
    assert tasks.given[2].known["k"] == score


def test_why_a_trial_has_no_answer(monkeypatch):
    def get(error):
        raise error

    monkeypatch.setattr("ray.get", get)
    text = "ray::run_sweep_trial()\n  File ...\nrd3.errors.BadValue: A protocol has no field 'x'."
    failed = RayTaskError("run_sweep_trial", text, BadValue("A protocol has no field 'x'."))
    assert run._answer(failed) == Answer(None, {}, "rd3.errors.BadValue: A protocol has no field 'x'")
    assert run._answer(WorkerCrashedError()) == Answer(None, {}, "its process died 3 times (WorkerCrashedError)")


def test_a_ray_that_has_died_between_two_batches_is_not_waited_for(sweep, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr("pipelines.cluster.local.dead_service", lambda: "raylet")
    monkeypatch.setattr(run, "cluster_devices", lambda: (answers.wait(10), 0.0))
    with pytest.raises(RayDied, match="its raylet has died"):
        sweep._trial_input(sweep.subjects[0], 0, {})
    answers.set()


def test_a_signal_ends_the_waiting_as_a_signal(sweep):
    sweep.interrupts.name = "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        sweep._retry(Outage(lambda: None, 1))


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def statuses(sweep: SweepRun) -> dict[str, tuple[str, str | None]]:
    """Name to status and reason of every run of the sweep."""
    runs = sweep.tracker.search([sweep.tracker.experiment("rd3 sweeps")], {"rd3.sweep": sweep.key})
    return {run.info.run_name: (run.info.status, run.data.tags.get("rd3.reason")) for run in runs}


def test_a_signal_while_a_batch_is_written_comes_after_it(sweep, monkeypatch):
    monkeypatch.setattr(sweep, "_trial_input", lambda *_asked: None)
    monkeypatch.setattr(
        sweep, "_answers",
        lambda attempts, _before: ((number, Answer(Ended("COMPLETE", 50.0, {}), {})) for number in attempts),
    )  # fmt: skip
    sweep.check_lease = lambda: None
    view = SimpleNamespace(one_more=lambda: None, batch_ended=lambda: None)
    log, [subject] = sweep.tracker.log, sweep.subjects

    def interrupted(*what, **more):
        """The signal comes between the making of a run and its end."""
        if not sweep.interrupts.name:
            terminate()
        log(*what, **more)

    with sweep.interrupts:
        sweep._studies()
        sweep._open()
        monkeypatch.setattr(sweep.tracker, "log", interrupted)
        tuning = sweep.outcome.tunings[subject.label]
        with pytest.raises(KeyboardInterrupt):
            sweep._batch(subject, tuning, tuning.next_batch(), view)
    assert (sweep.interrupts.name, len(tuning.trials())) == ("SIGTERM", 4)
    found = statuses(sweep)
    assert found.pop("sweep demo")[0] == "RUNNING"
    assert found == {f"random trial {number}": ("FINISHED", None) for number in range(4)}


@pytest.fixture
def through(sweep, monkeypatch) -> SweepRun:
    """A sweep of which only the report is left to be made."""
    monkeypatch.setattr("pipelines.sweep.run.ray_cluster", lambda *_asked: contextlib.nullcontext())
    monkeypatch.setattr(sweep, "_run_plan", lambda *_asked: True)
    for step in ("_tune", "_test"):
        monkeypatch.setattr(sweep, step, lambda: None)
    return sweep


def test_the_report_is_kept_with_the_parent_run(through):
    seen = []
    assert through.run(lambda outcome: seen.append(outcome) or {"report.md": "# demo"}).exit_code == 0
    assert seen == [through.outcome]
    assert statuses(through) == {"sweep demo": ("FINISHED", None)}


def test_a_signal_while_the_report_is_made_leaves_no_run_open(through):
    before = signal.getsignal(signal.SIGTERM)
    outcome = through.run(lambda _outcome: terminate())
    assert (outcome.interrupted, outcome.exit_code) == ("SIGTERM", 130)
    assert statuses(through) == {"sweep demo": ("KILLED", "interrupted by SIGTERM")}
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_report_that_fails_leaves_no_run_open(through):
    def publish(_outcome):
        raise ValueError("no ink")

    with pytest.raises(ValueError, match="no ink"):
        through.run(publish)
    assert statuses(through) == {"sweep demo": ("FAILED", "the report failed: no ink")}


def test_the_reason_why_a_sweep_failed_stays_whatever_becomes_of_its_report(through, monkeypatch):
    monkeypatch.setattr(through, "_test", lambda: through.outcome.failed.append(("failed", "no winner", "random")))
    with pytest.raises(ZeroDivisionError):
        through.run(lambda _outcome: 1 / 0)
    assert statuses(through) == {"sweep demo": ("FAILED", "no winner")}
