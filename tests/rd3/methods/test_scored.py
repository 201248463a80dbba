"""EL2N, forgetting and AUM against plain loops over simulated logits, and CCS against a plain loop."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from rd3.errors import BadValue, Unsupported
from rd3.methods import METHODS, resolve_settings
from rd3.methods._scored import budgets, ccs, mean_hardness
from rd3.methods.forgetting import forgetting_events
from rd3.planning.sets import plan_set
from rd3.recipe import Data, SetRecipe, TeacherRecipe, TrainingDynamicsRecipe
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.teacher.dynamics import Dynamics, load, margins_and_errors
from rd3.testing import ToyDataset, trial_recipes, trial_set
from rd3.values import digest

E, N, C = 7, 40, 4
SCORED = ("el2n", "forgetting", "aum")


@pytest.fixture
def history() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (E, N, C) of a network that learns some images, forgets some, and never learns others; labels (N,)."""
    labels = torch.randint(C, (N,), generator=generator(0, "labels"))
    hot = torch.nn.functional.one_hot(labels, C)
    drift = torch.linspace(-1, 2, E)[:, None, None] * hot * torch.rand((N, 1), generator=generator(0, "ease"))
    logits = drift + torch.randn((E, N, C), generator=generator(0, "noise"))
    logits[:, :3] -= 20 * hot[:3]
    return logits, labels


def recorded(history: tuple[torch.Tensor, torch.Tensor]) -> Dynamics:
    logits, labels = history
    margins, errors = zip(*(margins_and_errors(epoch, labels) for epoch in logits), strict=True)
    return Dynamics(torch.stack(margins).numpy(), torch.stack(errors).numpy())


def hardness(name: str, *found: Dynamics, **settings: int) -> list[float]:
    method = METHODS.get(name)()
    values = {"beta": 0.0, **settings}
    return method.hardness(found, method.Settings.model_validate(values)).tolist()


def test_el2n_is_the_mean_error_of_the_first_epochs(history) -> None:
    logits, labels = history
    expected = []
    for image in range(N):
        norms = []
        for epoch in range(3):
            powers = [math.exp(value) for value in logits[epoch, image].tolist()]
            squares = [(power / sum(powers) - (c == int(labels[image]))) ** 2 for c, power in enumerate(powers)]
            norms.append(math.sqrt(sum(squares)))
        expected.append(sum(norms) / 3)
    assert hardness("el2n", recorded(history), early_epochs=3) == pytest.approx(expected, abs=1e-5)


def test_el2n_is_a_mean_over_several_trainings(history) -> None:
    first, second = recorded(history), recorded((history[0].flip(0), history[1]))
    both = hardness("el2n", first, second, early_epochs=2, runs=2)
    alone = [hardness("el2n", one, early_epochs=2) for one in (first, second)]
    assert both == pytest.approx(np.mean(alone, axis=0).tolist())


def test_forgetting_counts_changes_from_right_to_wrong(history) -> None:
    logits, labels = history
    expected = []
    for image in range(N):
        right = [int(logits[epoch, image].argmax()) == int(labels[image]) for epoch in range(E)]
        events = sum(before and not after for before, after in itertools.pairwise(right))
        expected.append(events if any(right) else E)
    assert len(set(expected)) > 3 and expected[:3] == [E] * 3
    assert hardness("forgetting", recorded(history)) == expected


def test_an_epoch_without_an_image_changes_nothing() -> None:
    nan = math.nan
    margins = np.array([[1, nan, -1, nan, 2], [1, -1, nan, nan, -1], [-1, nan, -1, -1, nan]]).T
    assert forgetting_events(margins).tolist() == [1, 1, 5]
    assert mean_hardness(np.array([[1, nan, nan], [3, 4, nan]])).tolist() == [2, 4, 4]


def test_aum_is_the_mean_margin(history) -> None:
    logits, labels = history
    expected = []
    for image in range(N):
        margins = []
        for epoch in range(E):
            row, label = logits[epoch, image].tolist(), int(labels[image])
            margins.append(row[label] - max(value for c, value in enumerate(row) if c != label))
        expected.append(-sum(margins) / E)
    assert hardness("aum", recorded(history)) == pytest.approx(expected, abs=1e-5)


def plain_budgets(counts: list[int], wanted: int) -> Counter[int]:
    """The smallest stratum first, which gives its share of what is left, or all that it has."""
    left, strata, found = wanted, dict(enumerate(counts)), Counter[int]()
    while strata:
        smallest = min(strata, key=lambda number: (strata[number], number))
        found[smallest] = min(strata.pop(smallest), left // (len(strata) + 1))
        left -= found[smallest]
    return found


@pytest.mark.parametrize("wanted", [1, 5, 20, 33])
def test_budgets(wanted: int) -> None:
    counts = [0, 10, 1, 4, 0, 18]
    found = budgets(counts, wanted)
    assert sum(found) == wanted and all(few <= many for few, many in zip(found, counts, strict=True))
    assert dict(enumerate(found)) == plain_budgets(counts, wanted)
    # A stratum that is not exhausted gives at least as many as any other
    open_ones = [few for few, many in zip(found, counts, strict=True) if few < many]
    assert not open_ones or max(open_ones) - min(open_ones) <= 1 or wanted < len(counts)


@pytest.mark.parametrize(("wanted", "beta"), [(1, 0.3), (6, 0.0), (12, 0.5), (40, 0.9)])
def test_ccs_prunes_the_hardest_and_covers_the_range_of_the_others(wanted: int, beta: float) -> None:
    scores = np.random.default_rng(3).exponential(size=40)
    chosen = ccs(scores, wanted, beta, 6, generator(0, "ccs"))
    assert len(set(chosen)) == wanted
    order = sorted(range(40), key=lambda i: scores[i])
    kept = order[: max(wanted, 40 - math.floor(beta * 40))]
    low, high = scores[kept[0]], scores[kept[-1]]
    strata: list[list[int]] = [[] for _ in range(6)]
    for i in kept:
        edge = [low + (high - low) * number / 6 for number in range(1, 6)]
        strata[sum(scores[i] >= bound for bound in edge)].append(i)
    drawn = [len(set(stratum) & set(chosen)) for stratum in strata]
    assert drawn == [plain_budgets([len(stratum) for stratum in strata], wanted)[number] for number in range(6)]
    assert sum(drawn) == wanted
    number_of = {i: number for number, stratum in enumerate(strata) for i in stratum}
    assert [number_of[i] for i in chosen] == sorted(number_of[i] for i in chosen), "easiest first"


def test_ccs_draws_every_image_of_a_stratum_equally_often() -> None:
    """Ten images of one stratum, 3,000 draws of two: chi-squared (9 d.f.) below its 99.9 % point."""
    counts = np.zeros(10)
    for seed in range(3000):
        counts[ccs(np.zeros(10), 2, 0.0, 50, generator(seed, "ccs"))] += 1
    assert float(((counts - 600) ** 2 / 600).sum()) < 27.9


TOY = ToyDataset(classes=3, per_class=12)


@pytest.mark.parametrize("name", SCORED)
def test_the_set_is_what_ccs_selects_by_the_recorded_training(name: str, tmp_path) -> None:
    recipes = trial_recipes(name, TOY, 3)
    before, recipe = recipes
    assert isinstance(before, TrainingDynamicsRecipe) and isinstance(recipe, SetRecipe)
    assert recipe.parents() == (("training_dynamics", before.key),) and recipe.teachers == ()
    trial_set(recipes, TOY, (), tmp_path, tmp_path / "set")
    made = SyntheticSet.open(tmp_path / "set")
    method = METHODS.get(name)()
    settings = method.Settings.model_validate(recipe.settings)
    scores = method.hardness([load(tmp_path / "parents" / before.key, before.key)], settings)
    for label in range(3):
        positions = np.flatnonzero(TOY.labels("train") == label)
        stream = generator(0, "synthesize", "select", label)
        chosen = positions[ccs(scores[positions], 3, settings.beta, settings.strata, stream)]
        assert torch.equal(made.images[made.labels == label], TOY.images("train", chosen.tolist()))


def teacher_of(role: str, **changed: object) -> TeacherRecipe:
    _dynamics, recipe = trial_recipes("aum", TOY, 1)
    own = {"network": "convnet", "seed": 3, "training": _dynamics.training, "precision": "auto", **changed}
    return TeacherRecipe(
        data=recipe.data, classes=recipe.classes, resolution=32, normalisation=TOY.info.normalisation, **own
    )


def planned(name: str, ipc: int = 1, **values: object) -> list:
    data = Data(name="toy", fingerprint=TOY.fingerprint)
    return plan_set(name, TOY.info, data, ipc, values, teacher="teacher", teacher_of=teacher_of).recipes(0)


def test_one_recorded_training_serves_all_methods_and_ipcs() -> None:
    keys = {planned(name, ipc)[0].key for name in SCORED for ipc in (1, 5)}
    assert len(keys) == 1
    trainings = planned("el2n", runs=3)[:-1]
    assert [one.seed for one in trainings] == [3, 4, 5] and trainings[0].key in keys
    assert planned("el2n", runs=3)[-1].dynamics == tuple(one.key for one in trainings)


def test_an_imported_teacher_has_no_training_to_record() -> None:
    def imported(role: str) -> TeacherRecipe:
        return teacher_of(role, training=None, precision=None, seed=None, weights=digest("weights"))

    data = Data(name="toy", fingerprint=TOY.fingerprint)
    with pytest.raises(
        Unsupported, match="the training of teacher big cannot be recorded, as its weights are imported"
    ):
        plan_set("aum", TOY.info, data, 1, {"recorded": "big"}, teacher="teacher", teacher_of=imported)


def test_a_recorded_training_must_be_given(tmp_path) -> None:
    recipe = trial_recipes("aum", TOY, 1)[-1]
    with pytest.raises(BadValue, match="names 1 training dynamics, got 0"):
        synthesize(recipe, TOY, (), tmp_path)


def test_settings_are_ccs_own_and_the_role_is_not_stored() -> None:
    settings = resolve_settings("el2n", TOY.info, 1, {"recorded": "another"})
    assert settings.model_dump() == {"beta": 0.3, "strata": 50, "early_epochs": 10, "runs": 1}
