"""One attempt at a recipe, without Ray and MLflow: what is kept, what is resumed, how it ends when it fails."""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import attempt, recipe_run, trial_log, waiting
from pipelines.engine.job import JOBS, Job, TrialEnd, work_folder
from pipelines.settings import trial_log_path
from rd3.errors import DataCorrupt, DataMissing, Diverged, TrackingError, TrackingUnavailable
from rd3.locks import is_locked
from rd3.recipe import Data, SetRecipe
from rd3.store import STUDENT, Entry, FolderStore, check_files, sha256_files
from rd3.values import canonical
from tests.tracking.remote import RemoteFolder
from tracking.ledger import retry as patience
from tracking.place import Place
from tracking.runs import artifacts
from tracking.store import GivenStore

TEACHER = "ab" * 32


class FakeRun:
    """An MLflow run that remembers how it ended."""

    def __init__(self, bench: Bench):
        self.bench, self.ends, self.broken = bench, bench.ends, bench.run_breaks

    def finish(self, entry: Entry, folder: Path, *, input_set: Any = None, note: str = "") -> Entry:
        assert f"made from teacher resnet18 digits, key `{TEACHER[:12]}`" in note
        self._answer()
        self.ends.append("finished")
        return entry.model_copy(update={"run_id": "run1", "artifact": folder.as_uri()})

    def fail(self, status: str, reason: str) -> None:
        if self.broken:
            raise TrackingError("MLflow went away.")
        self._answer()
        self.ends.append((status, reason))

    def _answer(self) -> None:
        if self.bench.away > 0:
            self.bench.away -= 1
            raise TrackingUnavailable("MLflow does not respond.")


class Bench:
    """A trial whose recipe, store and tracking server are in the hands of the test."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch):
        self.home = home
        self.store = FolderStore(home / "store")
        self.ends: list[Any] = []
        self.begun: list[int] = []
        self.performed = 0
        self.raises: Exception | None = None
        self.result: dict[str, Any] = {}
        self.run_breaks = False
        self.closed = False
        """The tracking server lets nobody begin."""
        self.away = 0
        """How often it does not respond at the end."""
        data = Data(name="digits", fingerprint="f")
        self.recipe = SetRecipe(
            method="random", version=1, settings={}, data=data, classes="c", resolution=32, ipc=1, teachers=(TEACHER,)
        )
        self.job = Job(
            kind="set",
            key=self.recipe.key,
            recipe=canonical(self.recipe.model_dump(mode="json")),
            facts={},
            place=Place("", str(home / "artifacts"), home),
            experiment_id="0",
            parent_run_id=None,
        )
        parent = home / "parent"
        parent.mkdir()
        (parent / "weights").write_text("w")
        plain = {"kind": "teacher", "network": "resnet18", "data": data.model_dump(), "classes": "c", "resolution": 32}
        plain |= {"weights": "w", "normalisation": {"mean": (0, 0, 0), "std": (1, 1, 1)}}
        files = sha256_files(parent)
        self.store.put(Entry(kind="teacher", key=TEACHER, recipe=plain, result={}, files=files), parent)
        monkeypatch.setattr(attempt, "perform", self._perform)
        monkeypatch.setattr(recipe_run, "_tracker", lambda _place: self)
        monkeypatch.setattr(attempt, "given_store", lambda _jobs: self.store)

    def begin(
        self, recipe: Any, facts: Any, *, experiment_id: str, parent_run_id: str | None, attempt: int, grid: str
    ) -> FakeRun:
        self.begun.append(attempt)
        if self.closed:
            raise TrackingUnavailable("MLflow does not respond.")
        return FakeRun(self)

    def _perform(
        self,
        recipe: Any,
        store: Any,
        roots: Any,
        out: Path,
        *,
        device: str,
        shared_machine: bool,
        larger: str | None,
        progress: Any,
        keep_student: bool,
        cached_logits: Any,
    ) -> Entry:
        self.performed += 1
        assert shared_machine
        assert keep_student == self.job.keep_student
        assert cached_logits is None
        assert device == "cpu"
        self.closed = False
        if self.raises is not None:
            raise self.raises
        (out / "result").mkdir(exist_ok=True)
        (out / "result" / "images").write_text("pixels")
        if keep_student:
            (out / "result" / STUDENT).write_text("weights")
        files = sha256_files(out / "result")
        plain = recipe.model_dump(mode="json")
        return Entry(kind="set", key=recipe.key, recipe=plain, result=dict(self.result), files=files)

    def attempt(self, notes: list[str] | None = None) -> TrialEnd:
        """A trial of this one recipe; what it says of its progress is added to ``notes``."""
        ends: list[TrialEnd] = []
        said = [] if notes is None else notes
        attempt.attempt(
            [self.job], lambda _number, _fraction, note: said.append(note), lambda _number, end: ends.append(end)
        )
        assert len(ends) == 1
        return TrialEnd.from_json(ends[0].to_json())

    def events(self) -> list[str]:
        return [event["event"] for event in trial_log.events(self.home)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_finished_recipe_is_reported_with_its_run_and_logged_once(bench: Bench):
    end = bench.attempt()
    assert end.status == "done"
    assert Entry.model_validate(end.entry).run_id == "run1"
    assert bench.ends == ["finished"]
    assert bench.events() == ["start", "made", "done"]
    assert bench.store.find("set", bench.recipe.key) is None, "a trial does not write the ledger"


def test_what_was_finished_before_the_driver_died_is_only_reported(bench: Bench):
    first = bench.attempt()
    again = bench.attempt()
    assert again == first
    assert (bench.performed, bench.begun) == (1, [1])
    assert bench.events() == ["start", "made", "done"]


def test_what_was_finished_and_has_lost_its_files_is_sent_again(bench: Bench):
    bench.attempt()
    (bench.job.folder / "result" / "images").unlink()
    assert bench.attempt().status == "done"
    assert bench.performed == 2
    assert bench.ends == ["finished", "finished"]
    assert bench.events() == ["start", "made", "done", "forgotten", "start", "made", "done"]


def test_an_attempt_that_died_before_its_last_line_completes_the_log(bench: Bench):
    bench.attempt()
    log = trial_log_path(bench.home)
    log.write_text(log.read_text().splitlines()[0] + "\n")
    bench.attempt()
    assert bench.events() == ["start", "done"]
    assert bench.performed == 1


def test_an_attempt_after_one_that_was_killed_is_the_second(bench: Bench):
    trial_log.append(bench.home, "start", "set", bench.recipe.key, attempt=1)
    assert bench.attempt().status == "done"
    assert bench.begun == [2]
    assert bench.events() == ["start", "start", "made", "done"]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (Diverged("The loss is nan in epoch 3.", "lower lr"), "diverged", "epoch 3. Fix: lower lr"),
        (MemoryError("no"), "oom", "MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom", "allocate"),
        (ZeroDivisionError("division by zero"), "failed", "test_attempt.py, line"),
    ],
)
def test_an_error_is_caught_once_with_its_status_and_reason(bench: Bench, error: Exception, status: str, says: str):
    bench.raises = error
    end = bench.attempt()
    assert (end.status, end.entry) == (status, None)
    assert says in end.reason
    assert bench.ends == [(status, end.reason)]
    assert bench.events() == ["start", "fail"]
    bench.raises = None
    assert bench.attempt().status == "done"


def test_a_tracking_server_that_fails_as_well_does_not_hide_why(bench: Bench):
    bench.raises, bench.run_breaks = DataCorrupt("cifar10 has changed.", "fetch it again"), True
    assert bench.attempt().reason == "cifar10 has changed. Fix: fetch it again"


def test_a_damaged_parent_is_named(bench: Bench):
    (bench.home / "store" / "artifacts" / "teacher" / TEACHER / "weights").write_text("changed")
    end = bench.attempt()
    assert end.status == "failed"
    assert end.broken == [("teacher", TEACHER)]
    assert "weights has sha256" in end.reason
    assert bench.performed == 0


def test_a_folder_that_another_process_holds_is_waited_for_and_then_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waiting, "ORPHAN_WAIT_S", 0.0)
    bench.job.folder.mkdir(parents=True)
    notes: list[str] = []
    with open(bench.job.folder / "lock", "w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(bench.job.folder / "lock")
        end = bench.attempt(notes)
    assert end.status == "failed"
    assert "Process 4711 still uses" in end.reason
    assert not is_locked(bench.job.folder / "lock")
    assert bench.attempt().status == "done"


def test_a_server_that_is_away_for_a_while_costs_nothing_that_was_made(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    bench.closed, bench.away = True, 3
    notes: list[str] = []
    end = bench.attempt(notes)
    assert end.status == "done"
    assert bench.begun == [1, 1], "once before there was an answer, once after"
    assert bench.ends == ["finished"]
    assert bench.performed == 1
    assert notes == ["waiting: MLflow does not respond."] * 3


def test_a_failure_is_told_to_a_server_that_is_away_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    bench.closed, bench.away, bench.raises = True, 3, Diverged("The loss is nan in epoch 3.", "lower lr")
    assert bench.attempt().status == "diverged"
    assert bench.begun == [1, 1], "once before there was an answer, once after"
    assert [status for status, _reason in bench.ends] == ["diverged"]


def test_a_recipe_that_is_made_twice_is_logged_twice(bench: Bench):
    bench.attempt()
    shutil.rmtree(bench.job.folder)
    bench.attempt()
    assert (bench.performed, bench.events().count("done")) == (2, 2)


def test_what_was_made_before_the_patience_ended_is_only_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "retry", lambda ask, **_options: ask())
    bench.away = 1
    end = bench.attempt()
    assert (end.status, end.reason) == ("failed", "MLflow does not respond.")
    assert bench.attempt().status == "done"
    assert bench.performed == 1
    assert bench.events() == ["start", "made", "fail", "start", "made", "done"]


def test_what_was_made_before_and_is_damaged_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "retry", lambda ask, **_options: ask())
    bench.away = 1
    bench.attempt()
    (bench.job.folder / "result" / "images").write_text("pixelz")
    assert bench.attempt().status == "done"
    assert bench.performed == 2


def test_a_recipe_that_is_to_be_made_anew_is_not_reported_from_what_lies_here(bench: Bench):
    bench.attempt()
    bench.job = replace(bench.job, ignore_earlier=True)
    assert bench.attempt().status == "done"
    assert bench.performed == 2


def test_finished_neighbours_that_the_ledger_has_are_swept(bench: Bench):
    done = work_folder(bench.home, "teacher", TEACHER)
    unfinished = work_folder(bench.home, "teacher", "cd" * 32)
    for folder in (done, unfinished):
        folder.mkdir(parents=True)
    (done / "entry.json").write_text("{}")
    bench.job = replace(bench.job, finished=[f"teacher/{TEACHER}", f"teacher/{'cd' * 32}"])
    bench.attempt()
    assert not done.exists()
    assert unfinished.exists()


def test_a_job_travels_as_json(bench: Bench):
    job = replace(bench.job, gpu=True, facts={"method": "random", "ipc": 1})
    assert JOBS.validate_python(json.loads(json.dumps(JOBS.dump_python([job], mode="json")))) == [job]


def test_a_device_error_makes_the_process_unfit_and_leaves_the_recipe_open(bench: Bench):
    bench.raises = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ...")
    with pytest.raises(attempt.Unfit, match=r"^RuntimeError: CUDA error: an illegal memory access was encountered$"):
        bench.attempt()
    assert bench.events() == ["start"] and bench.ends == [], "the run goes on in another process"
    assert not is_locked(bench.job.folder / "lock")
    bench.raises = None
    assert bench.attempt().status == "done"


@pytest.fixture
def remote(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> RemoteFolder:
    """The teacher's files, behind an address: a trial uses copies of them."""
    made = RemoteFolder(bench.home / "store" / "artifacts" / "teacher" / TEACHER)
    entry = bench.store.find("teacher", TEACHER).model_copy(update={"artifact": "s3://bucket/teacher"})
    monkeypatch.setattr(artifacts, "open_objects", lambda _uri: made)
    monkeypatch.setattr(artifacts, "exists", lambda _entry, _uri: False)
    monkeypatch.setattr(attempt, "given_store", lambda _jobs: GivenStore(bench.job.place, [entry]))
    return made


def use_teacher(bench: Bench, monkeypatch: pytest.MonkeyPatch, *damage: bytes | None) -> None:
    """Performing reads the teacher, as loading it does; each time something is written to its file (None: deleted)."""
    planned = list(damage)

    def performed(recipe: Any, store: Any, *words: Any, **options: Any) -> Entry:
        weights = store.fetch("teacher", TEACHER) / "weights"
        if planned:
            content = planned.pop(0)
            weights.unlink() if content is None else weights.write_bytes(content)
        try:
            check_files(weights.parent, store.find("teacher", TEACHER).files, "teacher")
        except (DataCorrupt, DataMissing):
            bench.performed += 1
            raise
        return bench._perform(recipe, store, *words, **options)

    monkeypatch.setattr(attempt, "perform", performed)


@pytest.mark.parametrize("damage", [b"changed", None])
def test_a_copy_that_is_damaged_between_check_and_use_is_downloaded_again(
    bench: Bench, remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
):
    use_teacher(bench, monkeypatch, damage)
    assert bench.attempt().status == "done"
    assert (bench.performed, remote.downloads) == (2, 2)
    assert bench.events() == ["start", "made", "done"], "one attempt"
    assert (bench.home / "cache" / "teacher" / TEACHER / "weights").read_text() == "w"


def test_a_copy_that_is_damaged_at_every_use_is_named_and_not_called_broken(
    bench: Bench, remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
):
    use_teacher(bench, monkeypatch, b"changed", b"changed", b"changed")
    end = bench.attempt()
    assert (end.status, end.broken, bench.performed) == ("failed", [], 2)
    assert "weights has sha256" in end.reason


def test_a_source_that_is_damaged_between_check_and_use_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    use_teacher(bench, monkeypatch, b"changed")
    end = bench.attempt()
    assert (end.broken, bench.performed) == ([("teacher", TEACHER)], 1)
    assert f"Read on {platform.node()}." in end.reason


@pytest.mark.parametrize(("damaged", "broken"), [(1, []), (2, [("teacher", TEACHER)])])
def test_a_damaged_download_is_tried_again_before_it_is_reported(
    bench: Bench, remote: RemoteFolder, damaged: int, broken: list[tuple[str, str]]
):
    remote.damaged = damaged
    end = bench.attempt()
    assert (end.broken, remote.downloads) == (broken, 2)


def test_a_student_is_kept_although_an_earlier_attempt_finished_without_it(bench: Bench):
    bench.attempt()
    bench.job = replace(bench.job, keep_student=True)
    kept = bench.attempt()
    assert bench.performed == 2 and STUDENT in kept.entry["files"]
    assert bench.attempt() == kept and bench.performed == 2


def recorded_in(bench: Bench, correct: int) -> Entry:
    """The entry in the ledger, without a student, whose files are in ``artifacts/recorded``."""
    folder = bench.home / "artifacts" / "recorded"
    folder.mkdir(parents=True)
    (folder / "images").write_text("recorded pixels")
    return Entry(
        kind="set",
        key=bench.recipe.key,
        recipe=bench.recipe.model_dump(mode="json"),
        result={"correct": correct, "tested": 100, "wall_s": 5.0},
        files=sha256_files(folder),
        artifact=folder.as_uri(),
        run_id="run0",
        made={"host": "then"},
    ).sealed()


def test_an_evaluation_that_runs_again_adds_its_student_and_changes_nothing_else(bench: Bench):
    recorded = recorded_in(bench, 87)
    bench.result = {"correct": 87, "tested": 100, "wall_s": 9.0}
    bench.job = replace(bench.job, keep_student=True, recorded=recorded.model_dump(mode="json"))
    end = bench.attempt()
    entry, folder = Entry.model_validate(end.entry), bench.home / "artifacts" / "recorded"
    assert entry == recorded.model_copy(update={"files": entry.files, "digest": entry.digest})
    assert entry.files == sha256_files(folder) and (folder / "images").read_text() == "recorded pixels"
    assert set(entry.files) - set(recorded.files) == {STUDENT} and not entry.altered
    assert (bench.begun, bench.ends) == ([], []), "the run of the recorded result is not opened"
    assert bench.attempt() == end and bench.performed == 1


def test_an_evaluation_that_runs_again_with_another_result_adds_nothing(bench: Bench):
    recorded = recorded_in(bench, 86)
    bench.result = {"correct": 87, "tested": 100}
    bench.job = replace(bench.job, keep_student=True, recorded=recorded.model_dump(mode="json"))
    end = bench.attempt()
    assert (end.status, end.entry) == ("failed", None)
    says = "has 87 correct predictions instead of 86; the recorded result stays, without weights. Fix: "
    assert says in end.reason
    assert sha256_files(bench.home / "artifacts" / "recorded") == recorded.files
    assert (bench.begun, bench.ends) == ([], [])


def test_a_finished_attempt_that_is_not_the_recorded_one_is_not_reported(bench: Bench):
    bench.result = {"correct": 87, "tested": 100}
    bench.job = replace(bench.job, keep_student=True)
    bench.attempt()
    recorded = recorded_in(bench, 87)
    bench.job = replace(bench.job, recorded=recorded.model_dump(mode="json"))
    entry = Entry.model_validate(bench.attempt().entry)
    assert entry.artifact == recorded.artifact and entry.result == recorded.result and bench.performed == 1
