"""What the driver's books say of real files, and when they write."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipes import COMMON, PLAIN, a_set

from pipelines.engine import trial_log
from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.interrupts import Interrupts
from pipelines.engine.job import work_folder
from pipelines.engine.progress import View
from pipelines.engine.status import grid_status
from pipelines.grid.expand import Expansion
from pipelines.settings import Session
from rd3.errors import StoreError, StoreUnavailable
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe
from rd3.store import STUDENT, Entry, sha256_files
from tests.tracking.remote import RemoteFolder
from tracking.runs import artifacts


def an_evaluation() -> EvaluationRecipe:
    protocol = resolve_protocol("rd3", factor=1, same_network=False, set_size=10, overrides={"labels": "hard"})
    given = {"protocol": protocol, "student": "convnet", "student_seed": 0, "normalisation": PLAIN}
    return EvaluationRecipe(**COMMON, set=a_set().key, **given)


class Bench:
    """A ledger in a folder with one set, whose files are in place or behind an address."""

    def __init__(self, home: Path):
        self.files = home / "mlflow" / "set"
        self.files.mkdir(parents=True)
        (self.files / "images").write_bytes(b"pixels")
        self.session = Session(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"), home)
        self.lease, self.interrupts = self.session.ledger.lease(), Interrupts()
        self.books = Bookkeeping(self.session, self.lease, self.interrupts)
        recipe = a_set()
        self.entry = Entry(
            kind="set",
            key=recipe.key,
            recipe=recipe.model_dump(mode="json"),
            result={},
            files=sha256_files(self.files),
            artifact=self.files.as_uri(),
        )

    def damaged(self, entry: Entry | None = None) -> bool:
        self.books.keep((entry or self.entry).model_dump(mode="json"))
        return self.books.damaged("set", self.entry.key)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_files_that_are_whole_changed_or_gone(bench: Bench):
    assert not bench.damaged()
    (bench.files / "images").write_bytes(b"pixelz")
    assert bench.damaged()
    (bench.files / "images").unlink()
    assert bench.damaged()


def test_an_entry_that_is_not_there_or_has_no_files(bench: Bench):
    assert bench.books.damaged("set", bench.entry.key)
    assert bench.damaged(bench.entry.model_copy(update={"artifact": None}))


def test_a_copy_on_this_machine_proves_nothing_of_the_source(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(artifacts, "open_objects", lambda _uri: RemoteFolder(bench.files))
    away = bench.entry.model_copy(update={"artifact": "s3://bucket/set"})
    copy = artifacts.fetch(away, bench.session.home / "cache")
    (copy / "images").write_bytes(b"pixelz")
    assert not bench.damaged(away), "this disk is at fault"
    artifacts.fetch(away, bench.session.home / "cache")
    (bench.files / "images").write_bytes(b"pixelz")
    assert bench.damaged(away)


def test_a_source_that_does_not_answer_is_not_damaged(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def away(*_asked: object) -> None:
        raise StoreUnavailable("The S3 server does not respond.")

    monkeypatch.setattr(artifacts, "check_source", away)
    bench.interrupts.name = "SIGTERM"  # or it would be asked again
    with pytest.raises(StoreUnavailable):
        bench.damaged()


def test_what_is_forgotten_leaves_ledger_and_scratch_and_is_made_from_scratch(bench: Bench):
    bench.damaged()
    scratch = work_folder(bench.session.home, "set", bench.entry.key)
    scratch.mkdir(parents=True)
    bench.books.forget("set", bench.entry.key)
    assert bench.session.ledger.find("set", bench.entry.key) is None and not scratch.exists()
    assert (bench.books.removed, bench.books.finished) == ({bench.entry.key}, [])
    assert [event["event"] for event in trial_log.events(bench.session.home)] == ["forgotten"]
    bench.damaged()
    assert (bench.books.removed, bench.books.finished) == (set(), [f"set/{bench.entry.key}"])


def test_the_scratch_of_shares_is_deleted_with_their_blocks(bench: Bench):
    folders = [work_folder(bench.session.home, "share", f"{key}-1of2") for key in (bench.entry.key, "ab" * 32)]
    for folder in folders:
        folder.mkdir(parents=True)
    bench.books.discard_blocks(bench.entry.key)
    assert [folder.exists() for folder in folders] == [False, True]


def test_the_end_of_a_dead_process_is_in_the_status(bench: Bench):
    key = bench.entry.key
    trial_log.append(bench.session.home, "start", "set", key, attempt=3)
    bench.books.log_failure("set", key, "killed", "its process died 3 times")
    status = grid_status(Expansion({key: a_set()}), bench.session.ledger, bench.session.home)
    assert status.why == {key: "killed: its process died 3 times"} and status.counts["set"]["failed"] == 1


def test_what_the_driver_waits_for_is_shown_until_the_store_responds(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    class Notes(View):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def show_note(self, note: str) -> None:
            self.notes.append(note)

    responses = iter([StoreUnavailable("The S3 server does not respond."), None])

    def ask() -> None:
        if error := next(responses):
            raise error

    monkeypatch.setattr("tracking.ledger.retry._FIRST_PAUSE_S", 0.0)
    bench.books.view = Notes()
    bench.books.retry(ask)
    assert bench.books.view.notes == ["The S3 server does not respond.", ""]


def test_nothing_is_written_without_the_lease(bench: Bench):
    with bench.lease:
        bench.damaged()
        for name in list(bench.session.ledger.objects.names("leases/")):
            bench.session.ledger.objects.delete(name)
        bench.lease.beat()
        with pytest.raises(StoreError, match=r"The lease on the ledger .* was removed"):
            bench.books.forget("set", bench.entry.key)
    assert bench.session.ledger.find("set", bench.entry.key) == bench.entry.sealed()


def test_only_the_recorded_evaluation_with_its_student_replaces_the_one_without(bench: Bench):
    recipe = an_evaluation()
    files, plain = sha256_files(bench.files), recipe.model_dump(mode="json")
    bare = Entry(kind="evaluation", key=recipe.key, recipe=plain, result={"correct": 3, "wall_s": 5.0}, files=files)
    student = {"files": files | {STUDENT: "0" * 64}}
    with bench.lease:
        bench.books.keep(bare.model_dump(mode="json"))
        assert bench.books.recorded(recipe.key) == bare.sealed()
        others = [{"made": {"host": "other"}}, student | {"result": {"correct": 3, "wall_s": 6.0}}]
        others.append(student | {"artifact": "file:///elsewhere"})
        for other in others:
            bench.books.keep(bare.model_copy(update=other).model_dump(mode="json"))
            assert bench.session.ledger.find("evaluation", recipe.key) == bare.sealed()
        kept = bare.model_copy(update=student)
        bench.books.keep(kept.model_dump(mode="json"))
    found = bench.session.ledger.find("evaluation", recipe.key)
    assert found == kept.sealed()
    assert bench.books.recorded(recipe.key) is None
