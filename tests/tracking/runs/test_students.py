"""A student that is added to an evaluation in the ledger: whenever the process dies, the entry passes its checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_recipes import COMMON, PLAIN, a_set

from rd3.errors import DataCorrupt, RD3Error, TrackingUnavailable
from rd3.kept_students import without_student
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe
from rd3.store import STUDENT, Entry, sha256_files
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.digests import compare, tagged_digests
from tracking.runs.runs import DIGEST, Tracker
from tracking.runs.students import record_student, upload_student
from tracking.store import TrackedStore
from tracking.upkeep.rebuild import rebuild
from tracking.upkeep.verify import check_entries


class Home:
    """A ledger with an evaluation that was recorded without its student."""

    def __init__(self, home: Path):
        self.place = Place(tracking_uri=f"sqlite:///{home}/mlflow.db", artifacts=str(home / "artifacts"), home=home)
        self.tracker, self.ledger = Tracker(self.place), Ledger(self.place.artifacts)
        self.again_folder = home / "again"
        protocol = resolve_protocol("rd3", factor=1, same_network=False, set_size=10, overrides={"labels": "hard"})
        given = {"protocol": protocol, "student": "convnet", "student_seed": 0, "normalisation": PLAIN}
        self.recipe = EvaluationRecipe(**COMMON, set=a_set().key, **given)
        folder = home / "recorded"
        entry = self.entry(folder, {"correct": 3, "tested": 9, "wall_s": 5.0})
        self.recorded = TrackedStore(self.place).put(entry.model_copy(update={"made": {"host": "then"}}), folder)
        self.run_id = str(self.recorded.run_id)

    def entry(self, folder: Path, result: dict[str, float], student: str = "") -> Entry:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(f'{{"wall_s": {result["wall_s"]}, "per_class_correct": [1, 2]}}')
        if student:
            (folder / STUDENT).write_text(student)
        plain, files = self.recipe.model_dump(mode="json"), sha256_files(folder)
        return Entry(kind="evaluation", key=self.recipe.key, recipe=plain, result=result, files=files)

    def upload(self, correct: int = 3) -> Entry:
        again = self.entry(self.again_folder, {"correct": correct, "tested": 9, "wall_s": 8.0}, "weights")
        return upload_student(self.recorded, again, self.again_folder, self.place.home / "cache")

    def found(self) -> Entry:
        return self.ledger.find("evaluation", self.recipe.key)

    def damage(self) -> str:
        """What ``rd3 artifacts verify`` and a report find in the entry."""
        tagged = tagged_digests(self.tracker)
        assert self.run_id in tagged
        [checked] = check_entries(TrackedStore(self.place), [("evaluation", self.recipe.key)], tagged)
        return checked.damage

    def tag(self) -> str:
        return str(self.tracker.client.get_run(self.run_id).data.tags[DIGEST])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_the_entry_is_sound_after_each_step(home: Home, monkeypatch: pytest.MonkeyPatch):
    before = home.tracker.client.get_run(home.run_id)
    entry = home.upload()
    assert home.found() == home.recorded and home.damage() == "", "the process died before the entry was replaced"
    with monkeypatch.context() as patch:
        patch.setattr(home.tracker, "log_entry", lambda _entry: (_ for _ in ()).throw(TrackingUnavailable("away")))
        assert record_student(home.ledger, home.tracker, entry) == home.found() == entry
    assert home.damage() == "" and home.tag() == home.recorded.digest, "... before the run got its digest"
    home.tracker.log_entry(entry)
    assert home.damage() == "" and home.tag() == entry.digest != home.recorded.digest
    after = home.tracker.client.get_run(home.run_id)
    assert (after.info, after.data.metrics, after.data.params) == (before.info, before.data.metrics, before.data.params)
    assert {name for name, value in after.data.tags.items() if before.data.tags.get(name) != value} == {DIGEST}


def test_result_provenance_and_files_stay(home: Home):
    record_student(home.ledger, home.tracker, home.upload())
    found = home.found()
    assert without_student(found) == home.recorded and found.result["wall_s"] == 5.0
    assert sha256_files(TrackedStore(home.place).fetch("evaluation", found.key)) == found.files
    home.ledger.forget("evaluation", found.key)
    assert rebuild(home.ledger, home.place).added == 1 and home.found() == found


def test_another_result_uploads_nothing(home: Home):
    with pytest.raises(RD3Error, match="4 correct predictions instead of 3"):
        home.upload(correct=4)
    assert sha256_files(TrackedStore(home.place).fetch("evaluation", home.recipe.key)) == home.recorded.files


def test_another_result_with_the_same_student_is_still_found(home: Home):
    entry = home.upload()
    record_student(home.ledger, home.tracker, entry)
    changed = entry.model_copy(update={"result": entry.result | {"correct": 9}})
    with pytest.raises(DataCorrupt, match="have different digests"):
        compare(changed, tagged_digests(home.tracker))
