"""Kept students in exports and imports: they go with their own result, and measurements go with theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_recipes import COMMON, PLAIN, a_set
from tiny_grid import session_in

from pipelines.settings import Session
from pipelines.transfer.results import convert_to_store, import_results
from rd3.kept_students import without_student
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe, Recipe, RobustnessRecipe
from rd3.store import STUDENT, Entry, FolderStore, sha256_files
from tracking.store import TrackedStore

Run = Callable[..., tuple[int, str, str]]
PROTOCOL = resolve_protocol("rd3", factor=1, same_network=False, set_size=10, overrides={"labels": "hard"})
EVALUATION = EvaluationRecipe(
    **COMMON, set=a_set().key, protocol=PROTOCOL, student="convnet", student_seed=0, normalisation=PLAIN
)
MEASURED = RobustnessRecipe.of(EVALUATION, ())
RESULT = {"correct": 87, "tested": 100, "final_loss": 0.5}


def put(store: FolderStore, recipe: Recipe, student: str = "", **figures: float) -> Entry:
    out = store.root.parent / f"made-{store.root.name}-{recipe.kind}"
    out.mkdir()
    (out / "result.json").write_text(json.dumps(RESULT | figures))
    if student:
        (out / STUDENT).write_text(student)
    plain, files = recipe.model_dump(mode="json"), sha256_files(out)
    entry = Entry(kind=recipe.kind, key=recipe.key, recipe=plain, result=RESULT | figures, files=files)
    return store.put(entry, out)


@pytest.fixture
def here(home: Path, empty_database: Path, tmp_path: Path) -> Session:
    """A home whose ledger has the evaluation without its student."""
    home.mkdir()
    shutil.copy(empty_database, home)
    store = FolderStore(tmp_path / "recorded")
    put(store, EVALUATION, wall_s=5.0)
    import_results(store.root, session_in(home))
    return session_in(home)


@pytest.fixture
def elsewhere(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "elsewhere")


def refused(path: Path, session: Session) -> dict[str, str]:
    return {one.kind: one.lacking for one in import_results(path, session) if not one.new}


def test_a_student_is_added_to_the_evaluation_that_the_ledger_has(here: Session, elsewhere: FolderStore, rd3: Run):
    recorded = TrackedStore(here).find("evaluation", EVALUATION.key)
    put(elsewhere, EVALUATION, "weights", wall_s=9.0)
    put(elsewhere, MEASURED)
    assert refused(elsewhere.root, here) == {}
    store = TrackedStore(here)
    found = store.find("evaluation", EVALUATION.key)
    assert without_student(found) == recorded and found.result["wall_s"] == 5.0
    assert (store.fetch("evaluation", EVALUATION.key) / STUDENT).read_text() == "weights"
    assert store.find("robustness", MEASURED.key) is not None
    assert rd3("artifacts", "verify")[1] == "2 intact, 0 damaged\n"
    assert refused(elsewhere.root, here) == {"evaluation": "", "robustness": ""}, "nothing is left to import"


def test_what_was_measured_with_another_student_is_refused(here: Session, elsewhere: FolderStore, rd3: Run):
    put(elsewhere, EVALUATION, "weights", correct=86)
    put(elsewhere, MEASURED, correct=86)
    reasons = refused(elsewhere.root, here)
    assert reasons["evaluation"].startswith("its student: Evaluation ")
    assert "86 correct predictions instead of 87; the recorded result stays" in reasons["evaluation"]
    assert reasons["robustness"] == (
        "its student is not that of the evaluation in the ledger: 86 correct predictions instead of 87"
    )
    store = TrackedStore(here)
    assert STUDENT not in store.find("evaluation", EVALUATION.key).files
    assert store.find("robustness", MEASURED.key) is None
    code, out, _err = rd3("import-results", elsewhere.root)
    assert code == 3 and "its student is not that" in " ".join(out.split())


@pytest.mark.parametrize(("correct", "new"), [(87, True), (86, False)])
def test_a_measurement_without_its_evaluation_has_its_result(
    here: Session, elsewhere: FolderStore, correct: int, new: bool
):
    put(elsewhere, MEASURED, correct=correct)
    assert [one.new for one in import_results(elsewhere.root, here)] == [new]


def test_rounding_of_a_measurement_on_another_device_is_no_other_student(here: Session, elsewhere: FolderStore):
    put(elsewhere, EVALUATION, "weights")
    put(elsewhere, MEASURED, correct=88)
    assert refused(elsewhere.root, here) == {}


def test_stores_have_students_only_on_request(elsewhere: FolderStore, tmp_path: Path):
    kept = put(elsewhere, EVALUATION, "weights")
    target = FolderStore(tmp_path / "out")
    assert convert_to_store(elsewhere.root, target.root) == 1
    assert target.find("evaluation", EVALUATION.key) == without_student(kept)
    assert not (target.fetch("evaluation", EVALUATION.key) / STUDENT).exists()
    assert convert_to_store(elsewhere.root, target.root, teachers=True) == 0
    assert target.find("evaluation", EVALUATION.key) == kept
    assert sha256_files(target.fetch("evaluation", EVALUATION.key)) == kept.files
