"""Keys: stable, sensitive to what matters, blind to what does not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from rd3.errors import BadValue, RD3Error
from rd3.perform import PERFORM
from rd3.planning.forecast import FORECASTS
from rd3.protocol import resolve_protocol
from rd3.recipe import (
    KINDS,
    Data,
    EvaluationRecipe,
    Normalisation,
    SetRecipe,
    TeacherRecipe,
    from_json,
    key_of,
    recipe_of_kind,
    register_kind,
    to_json,
    topological,
)
from rd3.store import Entry, FolderStore
from rd3.study import RESULTS, Study
from rd3.values import Frozen, digest, neutral, without_neutral

DATA = Data(name="digits", fingerprint="f" * 32)
UNIT = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def teacher(**changed: object) -> TeacherRecipe:
    fields = dict(data=DATA, classes="c", network="resnet18", resolution=32, normalisation=UNIT, weights="ab")
    return TeacherRecipe(**{**fields, **changed})


def a_set(**changed: object) -> SetRecipe:
    fields = dict(method="random", version=1, settings={}, data=DATA, classes="c", resolution=32, ipc=1, set_seed=0)
    return SetRecipe(**{**fields, **changed})


def evaluation(of: SetRecipe, **changed: object) -> EvaluationRecipe:
    fields = dict(
        set=of.key,
        teachers=(teacher().key,),
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10),
        student="resnet18",
        student_seed=0,
        data=DATA,
        classes="c",
        resolution=32,
        normalisation=UNIT,
    )
    return EvaluationRecipe(**{**fields, **changed})


def test_key_is_sha256_of_sorted_compact_json():
    recipe = teacher()
    plain = recipe.model_dump(mode="json")
    assert plain.pop("format") == 2
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert recipe.key == hashlib.sha256(text.encode()).hexdigest()


def test_key_ignores_the_order_of_settings():
    assert a_set(settings={"a": 1, "b": 2}).key == a_set(settings={"b": 2, "a": 1}).key


@pytest.mark.parametrize(
    "changed",
    [{"ipc": 2}, {"set_seed": 1}, {"version": 2}, {"settings": {"a": 1}}, {"precision": "bf16"}, {"method": "rded"}],
)
def test_key_follows_everything_that_changes_a_result(changed):
    assert a_set(**changed).key != a_set().key


@pytest.mark.parametrize("recipe", [teacher(), a_set(), evaluation(a_set())], ids=lambda recipe: recipe.kind)
def test_json_round_trip_keeps_the_key(recipe):
    again = from_json(to_json(recipe))
    assert type(again) is type(recipe)
    assert again.key == recipe.key


def test_a_neutral_field_does_not_rekey_the_past():
    class Before(Frozen):
        ipc: int

    class After(Frozen):
        ipc: int
        shine: float = neutral(0.0)

    assert digest(without_neutral(After(ipc=1))) == digest(without_neutral(Before(ipc=1)))
    assert digest(without_neutral(After(ipc=1, shine=0.5))) != digest(without_neutral(Before(ipc=1)))


def test_a_neutral_field_of_a_field_is_left_out_too():
    class Inner(Frozen):
        shine: float = neutral(0.0)

    class Outer(Frozen):
        inner: Inner

    assert without_neutral(Outer(inner=Inner())) == {"inner": {}}
    assert without_neutral(Outer(inner=Inner(shine=1.0))) == {"inner": {"shine": 1.0}}


def test_a_changed_copy_has_a_key_of_its_own():
    recipe = a_set()
    assert recipe.key != recipe.model_copy(update={"ipc": 2}).key == a_set(ipc=2).key


def test_a_teacher_is_trained_or_imported_never_neither():
    with pytest.raises(ValidationError, match="either trained"):
        teacher(weights=None)


def test_a_broken_document_names_the_field():
    document = json.loads(to_json(a_set()))
    document["ipc"] = "many"
    with pytest.raises(BadValue, match=r"set\.ipc"):
        from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "teacher", "format": "2"}', "format: '2', expected a number"),
        ('{"kind": "teacher", "seed": NaN}', "not JSON compliant"),
        ('{"kind": "evaluation", "teachers": [{}]}', "unhashable"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_any_other_document_is_no_recipe(text, reason):
    with pytest.raises(BadValue, match=f"Not a recipe: .*{reason}"):
        from_json(text)


def test_a_recipe_of_another_kind_is_refused():
    plain = a_set().model_dump(mode="json")
    assert recipe_of_kind(plain, SetRecipe) == a_set()
    with pytest.raises(BadValue, match="kind: 'set', expected 'teacher'"):
        recipe_of_kind(plain, TeacherRecipe)


def test_every_kind_can_be_computed_and_forecast():
    made_first = ["teacher", "training_dynamics", "statistics", "backbone", "derived", "set"]
    assert list(KINDS) == [*made_first, "evaluation", "robustness"]
    assert all(kind.model_fields["kind"].default == name for name, kind in KINDS.items())
    assert set(PERFORM) == set(FORECASTS) == set(KINDS.values())


def test_a_name_is_of_one_kind():
    with pytest.raises(RD3Error, match="Recipe kind 'teacher' is registered twice"):
        register_kind(TeacherRecipe)


@pytest.mark.parametrize("plain", ['{"kind": "student"}', '{"kind": ["set"]}', "{}"])
def test_an_unknown_kind_is_refused(plain):
    known = "teacher, training_dynamics, statistics, backbone, derived, set, evaluation"
    with pytest.raises(BadValue, match=f"kind: .*, expected one of {known}"):
        from_json(plain)


def test_parents_come_first():
    made, parent = a_set(teachers=(teacher().key,)), teacher()
    child = evaluation(made)
    assert [recipe.kind for recipe in topological([child, made, parent])] == ["teacher", "set", "evaluation"]


def test_recipes_load_neither_torch_nor_engines():
    code = "import sys, rd3, rd3.recipe, rd3.store; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def published(folder: Path, scratch: Path) -> Iterator[Entry]:
    """Every entry of a folder of results, whichever way they are kept."""
    store = Study(folder, scratch) if (folder / RESULTS).is_file() else FolderStore(folder / "store")
    return (store.find(*name) for name in store.names())


PUBLISHED = sorted(path.parent for path in (Path(__file__).parents[2] / "docs/results").glob(f"*/{RESULTS}"))


def test_there_are_published_results():
    assert {"cifar10", "digits-all", "studies"} <= {folder.name for folder in PUBLISHED}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_results_that_were_published_keep_their_keys(folder, tmp_path):
    """A field that came later and is not neutral would show here."""
    entries = list(published(folder, tmp_path))
    assert len(entries) > 10
    for entry in entries:
        assert key_of(entry.recipe) == entry.key


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": {"kl": {}}}, {"loss": {"kl": {"temperature": 20, "scale_t2": False}}}, {"loss": {"kl": {"temp": 3}}},
        {"augmentation": [{"resized_crop": {"min_area": 1.0, "antialias": True}}]}, {"augmentation": ["flip"]},
    ],
)  # fmt: skip
def test_a_protocol_that_is_not_resolved_is_refused(changed):
    recipe = evaluation(a_set())
    plain = json.loads(to_json(recipe))
    assert from_json(json.dumps(plain)) == recipe
    plain["protocol"] |= changed
    with pytest.raises(BadValue, match="settings differ from the resolved protocol"):
        from_json(json.dumps(plain))
