"""What a set is made from: teachers, statistics, sets to start from; which small sets a larger one holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue, ClassOrderError, UnknownName, Unsupported
from rd3.layer_statistics import LayerStatistics
from rd3.methods import METHODS, Method
from rd3.planning.sets import KnownSet, PlannedSet, largest_sets, plan_set
from rd3.recipe import Data, SetRecipe, TeacherRecipe, from_json, to_json
from rd3.synthesis import synthesize
from rd3.synthetic_set import SetOnDisk, SyntheticSet
from rd3.testing import ToyDataset, toy_teacher
from rd3.values import digest

TOY = ToyDataset()
DATA = Data(name="toy", fingerprint=TOY.fingerprint)


def teacher_of(role: str, info: DatasetInfo = TOY.info) -> TeacherRecipe:
    return TeacherRecipe(
        data=DATA,
        classes=info.classes,
        network="resnet18",
        resolution=32,
        normalisation=info.normalisation,
        weights=digest(role),
    )


def planned(
    method: str, ipc: int = 2, known: KnownSet = lambda _key: None, data: Data = DATA, **values: Any
) -> PlannedSet:
    return plan_set(method, TOY.info, data, ipc, values, teacher="teacher", teacher_of=teacher_of, known_set=known)


def a_set(**changed: Any) -> SetRecipe:
    [*_before, recipe] = planned("random", 3).recipes(5)
    return recipe.model_copy(update=changed)


def test_noise_leaves_the_recipe_as_it_was_before_there_was_a_choice():
    *_teachers, recipe = planned("sre2l", init="noise").recipes(0)
    plain = recipe.model_dump(mode="json")
    assert (plain.pop("init"), plain.pop("statistics"), plain.pop("format")) == (None, [], 2)
    assert (plain.pop("backbones"), plain.pop("derived"), plain.pop("dynamics")) == ([], [], [])
    assert "init" not in plain["settings"]
    assert recipe.key == digest(plain)


def test_a_set_that_starts_from_another_has_it_as_a_parent():
    teacher, first, recipe = planned("sre2l", init="random").recipes(4)
    assert (first.method, first.ipc, first.set_seed, first.data) == ("random", 2, 4, DATA)
    assert recipe.parents() == (("teacher", teacher.key), ("set", first.key))
    assert from_json(to_json(recipe)).key == recipe.key


def test_rded_gets_the_teacher_that_the_grid_names():
    recipes = planned("sre2l", init="rded").recipes(0)
    assert [recipe.kind for recipe in recipes] == ["teacher", "teacher", "set", "set"]
    assert recipes[2].teachers == recipes[3].teachers == (recipes[0].key,)


def test_a_start_by_key_is_the_same_recipe_as_by_name():
    by_name = planned("sre2l", init="random").recipes(0)
    by_key = planned("sre2l", init="3fa9", known={"3fa9": by_name[-2]}.get).recipes(0)
    assert by_key[-1].key == by_name[-1].key


@pytest.mark.parametrize(
    ("known", "error", "says"),
    [
        (a_set(data=Data(name="digits", fingerprint="f")), BadValue, "is of digits at 32 pixels, expected toy at 32"),
        (a_set(resolution=64), BadValue, "is of toy at 64 pixels"),
        (a_set(classes="ab"), ClassOrderError, "has class list ab, toy has"),
        (a_set(ipc=1), BadValue, "has 1 images per class, IPC is 2"),
    ],
    ids=["dataset", "resolution", "classes", "ipc"],
)
def test_a_start_that_does_not_fit_is_refused(known: SetRecipe, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        planned("sre2l", init="3fa9", known=lambda key: known)


def test_a_start_that_is_neither_a_name_nor_a_key():
    with pytest.raises(UnknownName, match=r"There is no start 'rdad'\. Fix: did you mean 'rded'"):
        planned("sre2l", init="rdad")


def test_a_sweep_starts_from_no_set_that_has_seen_its_validation_images():
    fit = DATA.model_copy(update={"split": "fit"})
    with pytest.raises(BadValue, match="was generated from split train, which contains the validation images"):
        planned("sre2l", init="3fa9", known=lambda key: a_set(), data=fit)
    assert planned("sre2l", init="3fa9", known=lambda key: a_set(data=fit), data=fit).init is not None


def test_a_start_that_cannot_be_made_is_no_set():
    with pytest.raises(Unsupported, match="8 training images a class, IPC is 9"):
        planned("sre2l", 9, init="random")


def test_teachers_of_a_pool_share_the_class_list():
    def disagree(role: str) -> TeacherRecipe:
        return teacher_of(role).model_copy(update={"classes": "0" * 64})

    with pytest.raises(ClassOrderError, match="Teacher teacher has class list 000000000000"):
        plan_set("sre2l", TOY.info, DATA, 1, {}, teacher="teacher", teacher_of=disagree)


def test_synthesize_refuses_another_start(tmp_path: Path):
    first, recipe = planned("sre2l", init="random", iterations=2).recipes(0)[-2:]
    teachers = (toy_teacher(TOY),)
    with pytest.raises(BadValue, match="but none was given"):
        synthesize(recipe, TOY, teachers, tmp_path / "none")
    synthesize(first.model_copy(update={"ipc": 1}), TOY, (), tmp_path / "small")
    with pytest.raises(BadValue, match="has 1 images per class, IPC is 2"):
        synthesize(recipe, TOY, teachers, tmp_path / "few", init=SetOnDisk.open(tmp_path / "small"))


def test_synthesize_refuses_statistics_of_another_teacher(tmp_path: Path):
    recipe = planned("gvbsm", pool=["one", "two"]).recipes(0)[-1]
    assert len(recipe.teachers) == len(recipe.statistics) == 2
    teachers = (toy_teacher(TOY), toy_teacher(TOY, 1))
    swapped = [LayerStatistics(key, 4, {}, {}) for key in reversed(recipe.teachers)]
    with pytest.raises(BadValue, match=f"Statistics 0 of recipe .* are of teacher {recipe.teachers[1][:12]}, expected"):
        synthesize(recipe, TOY, teachers, tmp_path, statistics=swapped)
    with pytest.raises(BadValue, match="names statistics of 2 teachers, got 1"):
        synthesize(recipe, TOY, teachers, tmp_path, statistics=swapped[:1])


def test_both_methods_with_a_pool_share_their_statistics():
    of_gvbsm, of_edc = (planned(name, pool=["one"]).recipes(0) for name in ("gvbsm", "edc"))
    assert of_gvbsm[-1].statistics == of_edc[-1].statistics


class TestLargestSets:
    @pytest.fixture(autouse=True)
    def nesting(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Method, "nests", lambda *_: True, raising=True)

    @staticmethod
    def of(*recipes: list[Any]) -> dict[str, str]:
        return largest_sets([recipe for each in recipes for recipe in each], lambda name: TOY.info)

    def test_equal_but_for_the_ipc(self):
        sets = [planned("sre2l", ipc).recipes(0) for ipc in (1, 2, 4)]
        other = planned("sre2l", 8, iterations=7).recipes(0)
        another = planned("sre2l", 8).recipes(1)
        largest = sets[2][-1].key
        assert self.of(*sets, other, another) == {sets[0][-1].key: largest, sets[1][-1].key: largest}

    def test_only_if_their_starts_nest_as_well(self):
        small, large = (planned("sre2l", ipc, init="random").recipes(0) for ipc in (1, 2))
        found = self.of(small, large)
        assert found == {small[-2].key: large[-2].key, small[-1].key: large[-1].key}
        one, two = a_set(ipc=4, set_seed=8), a_set(ipc=4, set_seed=9)
        apart = [
            planned("sre2l", ipc, init="3fa9", known=lambda key, known=known: known).recipes(0)
            for ipc, known in ((1, one), (2, two))
        ]
        assert self.of(*apart) == {}

    def test_not_where_the_method_does_not_nest(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(METHODS.get("sre2l"), "nests", lambda *_: False)
        assert self.of(*(planned("sre2l", ipc).recipes(0) for ipc in (1, 2))) == {}


def test_a_small_set_is_taken_out_of_a_larger_one_with_its_times(tmp_path: Path):
    teachers = (toy_teacher(TOY),)
    small, large = (planned("sre2l", ipc, iterations=3, batch_classes=2).recipes(0)[-1] for ipc in (1, 3))
    whole = synthesize(large, TOY, teachers, tmp_path / "large")
    alone = synthesize(small, TOY, teachers, tmp_path / "alone")
    broken = toy_teacher(TOY)
    broken.network.register_forward_pre_hook(lambda *_: pytest.fail("it was made, not taken"))
    taken = synthesize(small, TOY, (broken,), tmp_path / "taken", larger=tmp_path / "large")
    assert taken.content == alone.content
    assert SyntheticSet.open(tmp_path / "large").prefix(1)[0].equal(SyntheticSet.open(tmp_path / "taken").images)
    assert 0 < taken.generation_process_s < whole.generation_process_s


def test_planning_a_set_needs_no_torch():
    code = (
        "import sys\n"
        "from rd3.datasets import dataset_info\n"
        "from rd3.recipe import Data\n"
        "from rd3.planning.sets import plan_set\n"
        "plan_set('random', dataset_info('digits'), Data(name='digits', fingerprint='f'), 1, {}, teacher='',\n"
        "         teacher_of=None).recipes(0)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
