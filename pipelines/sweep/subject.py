"""What a sweep tunes for: one method's set with its teacher and students, resolved, on validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.located_yaml import GridErrors, Problem
from pipelines.grid.values import Chosen
from pipelines.sweep.study import Pruning
from pipelines.sweep.values import Sweep
from rd3.datasets import DatasetInfo
from rd3.hardware import hardware
from rd3.planning.cost import shipped_rates, work
from rd3.protocol import EvalProtocol, Preset, fitting, merged, resolve_protocol
from rd3.recipe import EvaluationRecipe, Key, TeacherRecipe
from rd3.values import digest


@dataclass(frozen=True)
class Subject:
    """One method of a sweep."""

    label: str
    chosen: Chosen
    sweep: Sweep
    rule: Preset
    """The protocol to start from."""
    info: DatasetInfo
    teacher: TeacherRecipe
    same_network: bool
    bases: tuple[EvaluationRecipe, ...]
    """The base protocol on validation images, one a student seed."""
    expansion: Expansion
    """The grid of ``bases``."""

    @property
    def key(self) -> Key:
        """What is tuned and on what: the same key is the same sequence of trials."""
        return digest([self.sweep.asked, [base.key for base in self.bases]])

    @property
    def study(self) -> str:
        return f"{self.sweep.name}/{self.label}/{self.key[:12]}"

    @property
    def preset(self) -> str:
        """What its winner is called."""
        return f"{self.sweep.name}-{self.label}"

    @property
    def size(self) -> int:
        """|S| in images."""
        return self.sweep.ipc * self.info.num_classes

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a point sets in the protocol to start from, by name."""
        return fitting(self.rule, self.same_network, merged(self.sweep.protocol.values, params))

    def protocol(self, params: Mapping[str, Any]) -> EvalProtocol:
        """The resolved protocol of a point, with looks at the validation accuracy on the way."""
        resolved = resolve_protocol(
            self.rule,
            factor=self.info.factor,
            same_network=self.same_network,
            set_size=self.size,
            overrides=self.values(params),
        )
        looks = tuple(range(self.sweep.validate_epochs, resolved.epochs, self.sweep.validate_epochs))
        return resolved.model_copy(update={"test_epochs": looks})

    def evaluations(self, params: Mapping[str, Any]) -> list[EvaluationRecipe]:
        """What a trial makes, one recipe a student seed."""
        protocol = self.protocol(params)
        soft = (self.teacher.key,) if protocol.labels == "soft" else ()
        return [base.model_copy(update={"protocol": protocol, "teachers": soft}) for base in self.bases]

    @property
    def pruning(self) -> Pruning:
        moved = next((one for one in self.sweep.space if one.field == "epochs"), None)
        longest = max(moved.choices or (moved.high,)) if moved is not None else self.protocol({}).epochs
        return Pruning(self.sweep.pruner, self.sweep.validate_epochs, int(longest))

    def trial_s(self) -> float:
        """Rough process seconds of one trial that runs to its end, at the base point."""
        networks = {self.teacher.key: self.teacher.network}
        here = hardware()
        rates = shipped_rates(here.kind, here.bf16)
        return sum(rates.seconds(work(one, self.info, networks.__getitem__, self.size)) for one in self.evaluations({}))

    @property
    def teacher_saw(self) -> str:
        """What is known of the teacher and the validation images."""
        if self.teacher.key not in self.expansion.recipes:
            return "not used"
        return {
            "fit": "trained without the validation images",
            "train": "trained on all training images, the validation images among them",
            "unknown": "imported, and nobody said whether it was trained on the validation images",
        }[self.teacher.data.split]


def subjects(sweep: Sweep, catalog: Catalog) -> list[Subject]:
    """Every method of a sweep; raises :class:`GridErrors` for one that cannot make the set."""
    found, problems = [], []
    for place, (label, chosen) in enumerate(sweep.labels().items()):
        try:
            expansion = expand(sweep.validation_grid((chosen,)), catalog)
        except GridErrors as error:
            said = " ".join(problem.message for problem in error.problems)
            problems.append(Problem(f"methods[{place}]", f"{label} cannot make this set. {said}"))
            continue
        bases = tuple(expansion.evaluation_of(cell) for cell in expansion.cells)
        info = expansion.infos[sweep.dataset]
        teacher = expansion.teachers[sweep.dataset, sweep.teacher]
        rule = catalog.protocol(sweep.protocol.name)
        same = bases[0].student == teacher.network
        found.append(Subject(label, chosen, sweep, rule, info, teacher.recipe, same, bases, expansion))
    if problems:
        raise GridErrors(sweep.name, problems, "Sweep")
    return found


def sweep_key(found: list[Subject]) -> Key:
    """Of all methods together."""
    return digest([subject.key for subject in found])
