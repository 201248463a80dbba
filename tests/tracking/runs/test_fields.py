"""What a run says of the things that its recipe is made from."""

from __future__ import annotations

from rd3.protocol import resolve_protocol
from rd3.recipe import (
    CollectionSettings,
    Data,
    EvaluationRecipe,
    Normalisation,
    RobustnessRecipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
)
from rd3.store import Entry
from tracking.runs.fields import note, params, parent_facts, run_name

COMMON = {"data": Data(name="digits", fingerprint="f" * 64), "classes": "c" * 64, "resolution": 32}
GREY = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TEACHER = TeacherRecipe(**COMMON, network="resnet18", normalisation=GREY, weights="w" * 64)
COLLECTION = CollectionSettings(patch=8, crop="none", batch_size=50)
SET = SetRecipe(**COMMON, method="rded", version=1, settings={}, ipc=5, teachers=(TEACHER.key,), set_seed=3)
EVALUATION = EvaluationRecipe(
    **COMMON,
    set=SET.key,
    teachers=(TEACHER.key,),
    protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10),
    student="convnet",
    student_seed=0,
    normalisation=GREY,
)
MEASURED = RobustnessRecipe.of(EVALUATION, [])
LEDGER = {
    recipe.key: Entry(kind=recipe.kind, key=recipe.key, recipe=recipe.model_dump(mode="json"), result={}, run_id=run_id)
    for recipe, run_id in ((TEACHER, "run7"), (SET, None))
}


def test_facts_come_from_the_entries_of_the_parents() -> None:
    find = lambda _kind, key: LEDGER.get(key)  # noqa: E731
    assert parent_facts(EVALUATION, find) == {"method": "rded", "ipc": 5, "set_seed": 3, "teacher": "resnet18"}
    assert parent_facts(SET, find) == {"teacher": "resnet18"}
    assert parent_facts(TEACHER, find) == {}
    assert parent_facts(EVALUATION, lambda _kind, _key: None) == {}


def test_keys_of_parents_are_shown_with_12_digits() -> None:
    shown = params(StatisticsRecipe(**COMMON, teacher=TEACHER.key, collection=COLLECTION), {})
    assert (shown["teacher"], shown["classes"]) == (TEACHER.key[:12], "c" * 12)
    shown = params(EVALUATION, {})
    assert (shown["set"], shown["teachers"]) == (SET.key[:12], TEACHER.key[:12])


def test_a_note_links_to_the_runs_of_what_it_was_made_from() -> None:
    text = note(EVALUATION, lambda _kind, key: LEDGER.get(key))
    assert f"`rd3 artifacts fetch {EVALUATION.key[:12]}`" in text
    assert f"- made from [teacher resnet18 digits](#/runs/run7), key `{TEACHER.key[:12]}`" in text
    assert f"- made from set rded digits ipc5, key `{SET.key[:12]}`" in text
    assert "made from" not in note(TEACHER, lambda _kind, _key: None)
    assert f"- made from set, key `{SET.key[:12]}`" in note(EVALUATION, lambda _kind, _key: None)


def test_a_name_begins_with_what_tells_runs_apart() -> None:
    facts = {"method": "rded", "ipc": 5}
    assert run_name(EVALUATION, facts) == "rded digits ipc5 seed0 -> convnet"
    changed = run_name(EVALUATION, facts | {"changed": "zeta=2", "set_seed": 3})
    assert changed == "rded digits ipc5 seed3.0 zeta=2 -> convnet"
    assert run_name(SET, {}) == f"rded digits ipc5 seed{SET.set_seed} set"


def test_a_measurement_is_named_like_its_evaluation() -> None:
    entry = Entry(kind="evaluation", key=EVALUATION.key, recipe=EVALUATION.model_dump(mode="json"), result={})
    ledger = LEDGER | {EVALUATION.key: entry}
    facts = parent_facts(MEASURED, lambda _kind, key: ledger.get(key))
    assert run_name(MEASURED, facts) == "rded digits ipc5 seed3.0 -> convnet robustness"
    assert run_name(MEASURED, facts | {"changed": "zeta=2"}) == "rded digits ipc5 seed3.0 zeta=2 -> convnet robustness"
    alone = parent_facts(MEASURED, lambda _kind, _key: None)
    assert run_name(MEASURED, alone) == MEASURED.label()
    assert params(MEASURED, facts)["evaluation"] == EVALUATION.key[:12]
