"""Expand a grid into cells and recipes: resolves roles and presets, caps batch sizes, deduplicates recipes.

All keys are known afterwards.  Reads no ledger and does not import torch; ten thousand cells take about two seconds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.grid.catalog import Catalog, Frame
from pipelines.grid.files import load_grid
from pipelines.grid.located_yaml import GridErrors, Path, problem_in
from pipelines.grid.values import Chosen, Grid, Part
from rd3.cell import Cell
from rd3.component import changes_text
from rd3.datasets import DatasetInfo
from rd3.errors import RD3Error, StoreError, Unsupported
from rd3.methods import METHODS
from rd3.methods._base import reductions as settings_reductions
from rd3.models import network_info
from rd3.planning.backbones import backbone_recipe
from rd3.planning.sets import largest_sets, plan_set, tested_data
from rd3.planning.teacher_roles import teacher_recipe
from rd3.protocol import EvalProtocol, reductions, unsupported_loss
from rd3.recipe import (
    BackboneRecipe,
    Data,
    EvaluationRecipe,
    Key,
    Recipe,
    RobustnessRecipe,
    SetRecipe,
    SourceSplit,
    StatisticsRecipe,
    TeacherRecipe,
)
from rd3.values import canonical
from tracking.report.paper import configured_value
from tracking.runs.fields import Fact, cell_facts

if TYPE_CHECKING:
    from pipelines.settings import Session


@dataclass(frozen=True)
class Teacher:
    """A role on a dataset, resolved."""

    dataset: str
    role: str
    recipe: TeacherRecipe
    hint: str
    """How to import it; empty for a teacher that a run can train."""


@dataclass
class Expansion:
    """Cells and recipes of a grid.  Commands without a grid file build one from a few recipes."""

    recipes: dict[Key, Recipe]
    """Parents before children."""
    grid: Grid | None = None
    cells: list[Cell] = field(default_factory=list)
    blocked: dict[Key, str] = field(default_factory=dict)
    """Recipes of missing datasets: key to reason."""
    imports: dict[Key, str] = field(default_factory=dict)
    """What must be imported: key to reason, with the command; it blocks what needs it unless it is in the ledger."""
    labels: dict[Key, str] = field(default_factory=dict)
    """Display names of recipes, more specific than ``recipe.label()``."""
    teachers: dict[tuple[str, str], Teacher] = field(default_factory=dict)
    """(dataset, role) to teacher, for every pair in the grid."""
    infos: dict[str, DatasetInfo] = field(default_factory=dict)
    """Description of every dataset, for cost estimates; recipes of other datasets cost 0."""
    notes: list[str] = field(default_factory=list)
    """Warnings about parts of the grid without effect, as sentences."""
    larger_sets: dict[Key, Key] = field(default_factory=dict)
    """Sets that are a prefix of a larger set in the grid: key to key of the larger set."""

    @property
    def source_grid(self) -> Grid:
        """The grid; raises :class:`ValueError` for single recipes, which have none."""
        if self.grid is None:
            raise ValueError("single recipes belong to no grid")
        return self.grid

    def evaluation_of(self, cell: Cell) -> EvaluationRecipe:
        """The recipe of a supported cell; raises :class:`ValueError` for an unsupported one."""
        recipe = self.recipes[cell.evaluation] if cell.evaluation is not None else None
        if not isinstance(recipe, EvaluationRecipe):
            raise ValueError(f"the cell has no evaluation: {cell.reason}")
        return recipe

    def label(self, key: Key) -> str:
        """A short name for people."""
        return self.labels.get(key) or self.recipes[key].label()

    @cached_property
    def _cells_by_key(self) -> dict[Key, Cell]:
        """Recipe to the first cell that has it."""
        cells = reversed(self.cells)
        return {key: cell for cell in cells for key in (cell.evaluation, cell.set, cell.robustness) if key is not None}

    @cached_property
    def _parents(self) -> set[Key]:
        return {parent for recipe in self.recipes.values() for _kind, parent in recipe.parents()}

    @property
    def keeps_students(self) -> bool:
        """Whether evaluations keep the weights of their students."""
        return self.grid is not None and (self.grid.keep_students or bool(self.grid.robustness))

    def is_result(self, key: Key) -> bool:
        """Whether a recipe is a result of the grid, not only a parent of other recipes."""
        return key in self._cells_by_key if self.cells else key not in self._parents

    def facts(self, key: Key) -> dict[str, Fact]:
        """The grid's names for the parts of a recipe, used as parameters and filters in the tracking server."""
        recipe = self.recipes[key]
        of_teacher = recipe.teacher if isinstance(recipe, StatisticsRecipe) else key
        for teacher in self.teachers.values():
            if teacher.recipe.key == of_teacher:
                return {"dataset": teacher.dataset, "teacher": teacher.role, "network": teacher.recipe.network}
        cell = self._cells_by_key.get(key)
        if cell is not None:
            return cell_facts(dict(cell), of_set=isinstance(recipe, SetRecipe))
        if not isinstance(recipe, SetRecipe):
            return {"dataset": recipe.data.name}
        # An initial set of another, or one generated without a grid.
        facts: dict[str, Fact] = {"method": recipe.method, "dataset": recipe.data.name, "ipc": recipe.ipc}
        return facts if recipe.set_seed is None else facts | {"set_seed": recipe.set_seed}


def _label(recipe: Recipe, named: Mapping[Key, Teacher]) -> str:
    """Display name of an ancestor of a set, or of the set itself; ``named``: the grid's teachers by key."""
    if isinstance(recipe, StatisticsRecipe):
        return f"statistics of {named[recipe.teacher].role} {recipe.data.name}"
    if isinstance(recipe, SetRecipe) and not recipe.imported:
        return f"{recipe.method} {recipe.data.name} ipc{recipe.ipc} seed{recipe.set_seed}"
    return recipe.label()


def expanded(source: str | FilePath | Mapping[str, Any], session: Session) -> Expansion:
    """Cells and recipes of a grid, resolved with the user's own datasets, teachers and protocols.

    Takes what :func:`load_grid` takes, and raises as that and :func:`expand` do.
    """
    catalog = Catalog.of(session)
    return expand(load_grid(source, catalog), catalog)


def expand(grid: Grid, catalog: Catalog) -> Expansion:
    """Cells and recipes of a grid.

    Opens datasets for their fingerprints, without test splits for grids evaluated on validation images; recipes of
    datasets that cannot be opened are blocked.  Raises :class:`GridErrors` for mistakes that are found only here, and
    for a grid without any supported cell.
    """
    expander = _Expander(grid, catalog)
    for number, part in enumerate(grid.parts):
        for dataset in part.datasets:
            expander.add_part(number, part, dataset)
    expander.check()
    result = expander.result
    without_effect = [point for point, changes in expander.varied.items() if not changes]
    result.notes += [f"{point} has no effect: it equals the base value." for point in without_effect]
    several = any(part.label_teachers for part in grid.parts)
    if several and not any("label_teachers" in cell.overrides for cell in result.cells):
        result.notes.append("label_teachers: no student learns labels of other teachers than `teacher`.")
    result.notes += [] if grid.small else unprinted(result.cells)
    result.larger_sets = largest_sets(list(result.recipes.values()), lambda name: result.infos[name])
    return result


def unprinted(cells: list[Cell]) -> list[str]:
    """A sentence for every table that a grid names under ``paper`` and that prints no value of its cells there."""
    by_table: dict[tuple[str, str], set[tuple[str, str, int, str, str | None]]] = {}
    for cell in cells:
        for table_and_config in cell.printed.items():
            place = cell.method, cell.dataset, cell.ipc, cell.student, cell.teacher_network
            by_table.setdefault(table_and_config, set()).add(place)
    return [
        f"paper: the paper's Table {table} prints no value for any cell of this grid under {config!r}."
        for (table, config), places in by_table.items()
        if not any(configured_value(*place, {table: config}) for place in places)
    ]


class _PartSet(NamedTuple):
    """One set of a part, or the reason why it is unsupported."""

    recipe: SetRecipe | None
    reason: str = ""
    chain: tuple[Recipe, ...] = ()
    """Its ancestors, parents first, and itself."""
    changed: dict[str, Any] = {}
    """Settings of the method that the grid changes: name to value."""
    reduced: dict[str, tuple[float, float]] = {}
    """Settings below the published values: name to (run, published)."""
    tested: dict[str, Any] = {}
    """What its evaluations state otherwise than the set: the dataset as it is now, for an imported set."""

    @property
    def own_labels(self) -> bool:
        return self.recipe is not None and self.recipe.soft_label_kind is not None


_WITHOUT_OWN = "soft_labels 'own' needs an imported set with soft labels of its own"


class _Resolved(NamedTuple):
    """One resolved protocol, with the fields that the grid changes and those that are reduced, as in a set."""

    protocol: EvalProtocol
    changed: dict[str, Any]
    reduced: dict[str, tuple[float, float]]
    unsupported: str = ""
    """Why the loss that the grid names is unsupported; the protocol then is the one without it."""


class _Expander:
    """Resolves each dataset, teacher, setting and protocol once; the inner loop only varies seeds."""

    def __init__(self, grid: Grid, catalog: Catalog):
        self.grid = grid
        self.catalog = catalog
        self.split: SourceSplit = "train" if grid.test_on == "test" else "fit"
        self.result = Expansion(recipes={}, grid=grid)
        self.data: dict[str, Data] = {}
        self.absent: dict[str, str] = {}
        """Datasets that cannot be opened: name to reason."""
        self.seen: set[tuple[str, int, Key | None]] = set()
        """(values except the student seed as JSON, student seed, key of the evaluation) of the cells."""
        self.varied: dict[str, bool] = {}
        """Whether a varied value changes the protocol of any cell."""
        self.mistakes: list[tuple[int, Path, str, str]] = []
        """(part, location, message, fix) of invalid method values."""
        self.refusals: dict[str, tuple[int, Path]] = {}
        """Reason why cells are unsupported, to (part, location) of its first occurrence."""

    def check(self) -> None:
        """Raise :class:`GridErrors` for a grid with mistakes or without supported cells."""
        found = self.mistakes
        if not found and not any(cell.evaluation for cell in self.result.cells):
            message = "The grid has no supported cells: {}."
            found = [(*place, message.format(reason), "") for reason, place in self.refusals.items()]
        if found:
            located = partial(problem_in, self.grid.text, small=self.grid.small)
            problems = dict.fromkeys(located(*each) for each in dict.fromkeys(found))
            raise GridErrors(self.grid.source or self.grid.name, problems)

    def add_part(self, number: int, part: Part, dataset: str) -> None:
        """Add all cells of one part on one dataset: methods, IPC, students, protocols, varied fields, then seeds."""
        info = self._info(dataset)
        teacher = self._teacher(dataset, part.teacher[dataset])
        labelling = tuple(self._teacher(dataset, role) for role in part.label_teachers) or (teacher,)
        students = part.students or (teacher.recipe.network,)
        reasons = {student: _network_reason(student, info) for student in students}
        for place, student in enumerate(part.students or ()):
            self._refuse(reasons[student], number, "students", place)
        for at, chosen in enumerate(part.methods):
            for place, ipc in enumerate(part.ipc):
                try:
                    sets = self._sets(chosen, dataset, ipc, part)
                except StoreError:
                    raise
                except RD3Error as error:
                    self.mistakes.append((number, ("methods", at, chosen.name), error.message, error.fix))
                    continue
                for made in sets.values():
                    path = ("ipc", place) if ipc > info.train_per_class else ("methods", at)
                    self._refuse(made.reason, number, *path)
                for student in students:
                    frame = Frame.of(info, ipc, student, labelling[0].recipe.network)
                    for protocol, varied in product(part.protocols, part.points()):
                        resolved = self._resolved(part, protocol, varied, frame)
                        key = "protocol" if "loss" in part.protocol else "protocols"
                        self._refuse(resolved.unsupported, number, key)
                        combination = _Combination(
                            chosen.name, info, ipc, teacher, labelling, student, protocol.name, varied, part
                        )
                        for seed, made in sets.items():
                            without = _WITHOUT_OWN if resolved.protocol.own_labels and not made.own_labels else ""
                            self._refuse(without, number, "methods", at)
                            reason = made.reason or reasons[student] or resolved.unsupported or without
                            self._add_cells(combination, made, resolved, seed, reason)

    def _refuse(self, reason: str, part: int, *path: str | int) -> None:
        """Keep the first place in the grid at which cells are unsupported; without a reason they are supported."""
        if reason:
            self.refusals.setdefault(reason, (part, path))

    def _set_seeds(self, method: str, part: Part) -> tuple[int, ...]:
        """The part's set seeds; 0 alone for a method without a set seed, as identical sets are not repetitions."""
        if METHODS.get(method).seeded or part.set_seeds == (0,):
            return part.set_seeds
        note = f"Method {method} has no set seed: its sets are planned with set seed 0 alone."
        self.result.notes = list(dict.fromkeys([*self.result.notes, note]))
        return (0,)

    def _resolved(self, part: Part, chosen: Chosen, varied: dict[str, Any], frame: Frame) -> _Resolved:
        """The protocol at one point, with the batch size capped at the set's size; records if ``varied`` changes it."""
        fixed = part.protocol | chosen.values
        unsupported = unsupported_loss(fixed)
        named = {"loss": fixed.pop("loss")} if unsupported else {}
        at = partial(self.catalog.evaluation, chosen.name, frame)
        protocol, base, plain = at(fixed | varied), at(fixed), None
        with contextlib.suppress(RD3Error):  # the preset alone may set no epochs for this student
            plain = at({})
        for name, value in varied.items():
            point = f"vary.{name}: {json.dumps(value)}"
            self.varied[point] = self.varied.get(point, False) or protocol != base
        # Of the base point, so that a varied setting of a changed loss is compared with it.
        changed = {name: base.value(name) for name in fixed if plain is None or base.value(name) != plain.value(name)}
        reduced = reductions(self.catalog.protocol(chosen.name), protocol, frame.case)
        return _Resolved(protocol, changed | named, reduced, unsupported)

    def _add_cells(self, one: _Combination, made: _PartSet, resolved: _Resolved, set_seed: int, reason: str) -> None:
        """Add the cells that differ in the student seed alone, with their recipes unless there is a ``reason``."""
        supported, protocol = made.recipe if not reason else None, resolved.protocol
        taught = protocol.taught or (made.recipe is not None and bool(made.recipe.teachers))
        if supported is not None:
            self._add_chain(made.chain, one.info.name)
            for teacher in one.labelling if protocol.taught else ():
                self._add_teacher(teacher)
        changed = made.changed | resolved.changed
        if protocol.taught and one.labelling != (one.teacher,):
            changed["label_teachers"] = [teacher.role for teacher in one.labelling]
        values = {
            "method": one.method,
            "dataset": one.info.name,
            "ipc": one.ipc,
            "teacher": one.teacher.role,
            "teacher_network": one.teacher.recipe.network if taught else None,
            "student": one.student,
            "protocol": one.preset,
            "labels": protocol.labels,
            "varied": one.varied,
            "overrides": changed,
            "setting": one.part.setting,
            "printed": one.part.paper,
            "set_seed": set_seed,
            "set": supported.key if supported is not None else None,
            "reduced": made.reduced | resolved.reduced,
            "reason": reason,
        }
        shared = canonical(values)
        for seed in one.part.student_seeds:
            evaluation: EvaluationRecipe | None = None
            robustness: RobustnessRecipe | None = None
            if supported is not None:
                evaluation = EvaluationRecipe.of(
                    supported,
                    teachers=[teacher.recipe for teacher in one.labelling],
                    protocol=protocol,
                    student=one.student,
                    student_seed=seed,
                    normalisation=one.info.normalisation,
                    tested_on=self.grid.test_on,
                    **made.tested,
                )
                if self.grid.robustness:
                    robustness = RobustnessRecipe.of(evaluation, self.grid.corruptions)
            key = evaluation.key if evaluation is not None else None
            if (shared, seed, key) in self.seen:  # duplicate of an earlier part
                continue
            self.seen.add((shared, seed, key))
            measured = robustness.key if robustness is not None else None
            self.result.cells.append(Cell(**values, student_seed=seed, evaluation=key, robustness=measured))
            if evaluation is not None and key not in self.result.recipes:
                varied = f" {changes_text(one.varied)}" if one.varied else ""
                text = f"{one.method} {one.info.name} ipc{one.ipc} -> {one.student} {protocol.labels}{varied}"
                label = f"{text} seed{set_seed}.{seed}"
                self._add(evaluation, label, one.info.name)
                if robustness is not None:
                    self._add(robustness, f"robustness of {label}", one.info.name)

    def _add(self, recipe: Recipe, label: str, dataset: str) -> None:
        self.result.recipes[recipe.key] = recipe
        self.result.labels[recipe.key] = label
        if dataset in self.absent:
            self.result.blocked[recipe.key] = self.absent[dataset]

    def _add_chain(self, chain: tuple[Recipe, ...], dataset: str) -> None:
        """Add a set, preceded by its ancestors."""
        named = {teacher.recipe.key: teacher for teacher in self.result.teachers.values()}
        for recipe in chain:
            if recipe.key in named:
                self._add_teacher(named[recipe.key])
            elif recipe.key not in self.result.recipes:
                self._add(recipe, _label(recipe, named), dataset)

    def _add_teacher(self, teacher: Teacher) -> None:
        if teacher.recipe.key in self.result.recipes:
            return
        self._add(teacher.recipe, f"teacher {teacher.role} {teacher.dataset}", teacher.dataset)
        if teacher.hint:
            reason = f"teacher {teacher.role} of {teacher.dataset} must be imported: {teacher.hint}"
            self.result.imports[teacher.recipe.key] = reason

    def _info(self, dataset: str) -> DatasetInfo:
        """Facts of a dataset; opens it once, for its fingerprint."""
        if dataset not in self.result.infos:
            self.result.infos[dataset] = self.catalog.dataset(dataset, self.split)
            try:
                fingerprint = self.catalog.fingerprint(dataset, training_only=self.split == "fit")
            except RD3Error as error:
                fingerprint = "missing"  # in keys of recipes that are blocked
                self.absent[dataset] = str(error)
            self.data[dataset] = Data(name=dataset, fingerprint=fingerprint, split=self.split)
        return self.result.infos[dataset]

    def _teacher(self, dataset: str, name: str) -> Teacher:
        if (dataset, name) not in self.result.teachers:
            role = self.catalog.role(dataset, name)
            # a teacher trained here must not see the images that students are tested on, so it uses the sets' split
            recipe = teacher_recipe(role, self.result.infos[dataset], self.data[dataset].fingerprint, self.split)
            self.result.teachers[dataset, name] = Teacher(dataset, name, recipe, role.hint)
        return self.result.teachers[dataset, name]

    def _backbone(self, dataset: str, name: str) -> BackboneRecipe:
        role = self.catalog.backbone(dataset, name)
        recipe = backbone_recipe(role, self.result.infos[dataset], self.data[dataset].fingerprint, self.split)
        if role.hint:
            self.result.imports[recipe.key] = f"backbone {name} of {dataset} must be imported: {role.hint}"
        return recipe

    def _sets(self, chosen: Chosen, dataset: str, ipc: int, part: Part) -> dict[int, _PartSet]:
        """A method's sets by set seed, or the reason why they are unsupported; or the imported sets of a name."""
        info = self.result.infos[dataset]
        if chosen.sets:
            return self._imported_sets(chosen, info, ipc)
        role, seeds = part.teacher[dataset], self._set_seeds(chosen.name, part)
        try:
            planned = plan_set(
                chosen.name,
                info,
                self.data[dataset],
                ipc,
                chosen.values,
                teacher=role,
                teacher_of=lambda name: self._teacher(dataset, name).recipe,
                backbone_of=lambda name: self._backbone(dataset, name),
                known_set=self.catalog.known_set,
                settings_of=self.catalog.settings,
            )
        except Unsupported as error:
            return dict.fromkeys(seeds, _PartSet(None, error.message))
        settings = planned.settings
        plain = self.catalog.settings(chosen.name, info, ipc, {})
        changed = {
            f"{chosen.name}.{name}": getattr(settings, name)
            for name in chosen.values
            if getattr(settings, name) != getattr(plain, name)
        }
        reduced = settings_reductions(chosen.name, info, settings, ipc)
        found = {}
        for seed in seeds:
            *ancestors, made = planned.recipes(seed)
            assert isinstance(made, SetRecipe)
            found[seed] = _PartSet(made, "", (*ancestors, made), changed, reduced)
        return found

    def _imported_sets(self, chosen: Chosen, info: DatasetInfo, ipc: int) -> dict[int, _PartSet]:
        """The imported sets of a dataset and an IPC, numbered from 0 as the grid lists them, in place of set seeds."""
        known = [recipe for recipe in map(self.catalog.known_set, chosen.sets) if recipe is not None]
        fitting = [recipe for recipe in known if (recipe.data.name, recipe.ipc) == (info.name, ipc)]
        return dict(enumerate(self._imported(recipe, info) for recipe in fitting)) or {
            0: _PartSet(None, f"no set of IPC {ipc} has been imported as {chosen.name}")
        }

    def _imported(self, recipe: SetRecipe, info: DatasetInfo) -> _PartSet:
        if self.split == "fit" and recipe.data.split != "fit":
            return _PartSet(None, f"set {recipe.key[:12]} may have been made from the validation images")
        again = f"set {recipe.key[:12]} must be imported again: rd3 set import FILE --dataset {info.name}"
        self.result.imports[recipe.key] = again  # if its files are gone
        tested = tested_data(recipe, info, self.data[info.name].fingerprint)
        return _PartSet(recipe, chain=(recipe,), tested=tested)


class _Combination(NamedTuple):
    """What cells have in common that differ only in their seeds."""

    method: str
    info: DatasetInfo
    ipc: int
    teacher: Teacher
    labelling: tuple[Teacher, ...]
    """Teachers that give soft labels."""
    student: str
    preset: str
    varied: dict[str, Any]
    part: Part


def _network_reason(student: str, info: DatasetInfo) -> str:
    """Why a network cannot be a student on this dataset; empty if it can."""
    sides = network_info(student).resolutions
    if info.resolution in sides:
        return ""
    available = ", ".join(str(side) for side in sorted(sides))
    return f"{student} is not available at {info.resolution} pixels, only at {available}"
