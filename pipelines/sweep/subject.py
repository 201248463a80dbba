"""The subject of a study: one method's set with its teacher and students, resolved, on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.grid.catalog import Catalog, Frame
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.located_yaml import GridErrors, Problem
from pipelines.sweep.study import Pruning
from pipelines.sweep.values import Sweep, labelled
from rd3.datasets import DatasetInfo
from rd3.evaluation.packing import Views
from rd3.evaluation.sharing import LogitsCache, asks_teachers
from rd3.hardware import hardware
from rd3.planning.cost import shipped_rates
from rd3.planning.forecast import work
from rd3.protocol import EvalProtocol, Preset, applicable_values, merged
from rd3.recipe import EvaluationRecipe, Key, TeacherRecipe
from rd3.values import digest


@dataclass(frozen=True)
class Subject:
    """One method of a sweep."""

    label: str
    """Its name in the sweep (:func:`pipelines.sweep.values.labelled`)."""
    sweep: Sweep
    base_preset: Preset
    """The base protocol, of which a trial changes fields."""
    info: DatasetInfo
    teacher: TeacherRecipe
    frame: Frame
    """Dataset, set size and student, with which a preset is resolved to a protocol."""
    bases: tuple[EvaluationRecipe, ...]
    """Evaluations under the base protocol on validation images, one per student seed."""
    expansion: Expansion
    """The grid of ``bases``."""

    @property
    def key(self) -> Key:
        """Digest of what is tuned and on what: equal keys give the same sequence of trials."""
        return digest([self.sweep.asked, [base.key for base in self.bases]])

    @property
    def study(self) -> str:
        return f"{self.sweep.name}/{self.label}/{self.key[:12]}"

    @property
    def winner_name(self) -> str:
        """Name of the winner as a protocol."""
        return f"{self.sweep.name}-{self.label}"

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a point sets in the base protocol, by name.

        Without those that have no effect at this point, such as parameters of a loss that it does not use.
        """
        return applicable_values(self.base_preset, self.frame.case, merged(self.sweep.protocol.values, params))

    def protocol(self, params: Mapping[str, Any]) -> EvalProtocol:
        """The resolved protocol of a point, with validation steps during training; the last epoch always has one."""
        resolved = self.frame.resolve(self.base_preset, self.values(params))
        steps = tuple(range(self.sweep.validate_epochs, resolved.epochs, self.sweep.validate_epochs))
        return resolved.model_copy(update={"test_epochs": steps})

    def evaluations(self, params: Mapping[str, Any]) -> list[EvaluationRecipe]:
        """The evaluation recipes of a trial, one per student seed."""
        protocol = self.protocol(params)
        soft = (self.teacher.key,) if protocol.taught else ()
        return [base.model_copy(update={"protocol": protocol, "teachers": soft}) for base in self.bases]

    def cached_logits(self, recipes: Sequence[EvaluationRecipe], budget_bytes: int) -> dict[Key, LogitsCache]:
        """How a trial's evaluations use cached logits: all points with the views of the base protocol share them."""
        shared = {Views.of(base).key for base in self.evaluations({})} if budget_bytes else set()
        asking = (one for one in recipes if asks_teachers(one))
        return {one.key: LogitsCache(budget_bytes, wanted=True) for one in asking if Views.of(one).key in shared}

    @property
    def pruning(self) -> Pruning:
        epochs = next((one for one in self.sweep.space if one.field == "epochs"), None)
        longest = max(epochs.choices_or_ends) if epochs is not None else self.protocol({}).epochs
        return Pruning(self.sweep.pruner, self.sweep.validate_epochs, int(longest))

    def trial_s(self) -> float:
        """Rough CPU or GPU time in seconds of a complete trial at the base point."""
        here, parents = hardware(), {self.teacher.key: self.teacher} | self.expansion.recipes
        rates = shipped_rates(here.kind, here.bf16)
        return sum(rates.seconds(work(one, self.info, parents.__getitem__)) for one in self.evaluations({}))

    @property
    def teacher_saw(self) -> str:
        """Whether the teacher was trained on the validation images, as text."""
        if self.teacher.key not in self.expansion.recipes:
            return "not used"
        return {
            "fit": "trained without the validation images",
            "train": "trained on all training images, including the validation images",
            "unknown": "imported, and it is unknown whether it was trained on the validation images",
        }[self.teacher.data.split]


def subjects(sweep: Sweep, catalog: Catalog) -> list[Subject]:
    """The subjects of all methods; raises :class:`GridErrors` for methods that do not support the set."""
    found, problems = [], []
    for place, (label, chosen) in enumerate(labelled(sweep.methods).items()):
        try:
            expansion = expand(sweep.validation_grid((chosen,)), catalog)
        except GridErrors as error:
            reason = " ".join(problem.message for problem in error.problems)
            problems.append(Problem(f"methods[{place}]", f"{label} does not support this set. {reason}"))
            continue
        bases = tuple(expansion.evaluation_of(cell) for cell in expansion.cells)
        info = expansion.infos[sweep.dataset]
        teacher = expansion.teachers[sweep.dataset, sweep.teacher]
        preset = catalog.protocol(sweep.protocol.name)
        frame = Frame.of(info, sweep.ipc, bases[0].student, teacher.recipe.network)
        found.append(Subject(label, sweep, preset, info, teacher.recipe, frame, bases, expansion))
    if problems:
        raise GridErrors(sweep.source or sweep.name, problems, "sweep")
    return found


def sweep_key(found: list[Subject]) -> Key:
    """Digest of all subjects of a sweep."""
    return digest([subject.key for subject in found])
