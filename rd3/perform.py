"""Run recipes: read parents from a store, write files to a folder and return the entry for the ledger.

Needs neither Ray nor MLflow: :mod:`rd3.run`, for machines without them, and the trials of a grid call it alike.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd3 import __version__
from rd3.data_checks import check_data
from rd3.datasets import Dataset, Roots, open_dataset
from rd3.device import torch_defaults
from rd3.diffusion.derivation import derivation_of
from rd3.errors import DataCorrupt, DataMissing, RD3Error, ends_the_process
from rd3.evaluation.logits_folder import LogitsFolder
from rd3.evaluation.packing import Views
from rd3.evaluation.result import EvalResult
from rd3.evaluation.sharing import LogitsCache, asks_teachers
from rd3.lazy import torch
from rd3.methods import METHODS
from rd3.plugins import own_code
from rd3.protocol import Precision
from rd3.recipe import (
    KINDS,
    BackboneRecipe,
    DerivedRecipe,
    EvaluationRecipe,
    Key,
    Kind,
    Recipe,
    RobustnessRecipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
    TrainingDynamicsRecipe,
    recipe_of_kind,
)
from rd3.stopwatch import Stopwatch
from rd3.store import STUDENT, Entry, ReadableStore, existing, now, write_atomically, write_errors
from rd3.synthesis import synthesize
from rd3.synthetic_set import Manifest, SetOnDisk, SyntheticSet, contact_sheet
from rd3.values import digest

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone
    from rd3.evaluation.cached_logits import CachedLogits
    from rd3.evaluation.student import Evaluation
    from rd3.layer_statistics import LayerStatistics
    from rd3.models import NormalisedNetwork
    from rd3.teacher.dynamics import Dynamics

Progress = Callable[[float, str], None]
Tested = Callable[[int, float], None]
"""Called with an epoch (1-based) and the top-1 accuracy after it in per cent."""


def _open_data(recipe: Recipe, roots: Roots) -> Dataset:
    """Open the dataset of a recipe; raises unless it is exactly the data that the recipe was written for.

    Recipes that use only training images get the dataset without its test split.
    """
    dataset = open_dataset(recipe.data.name, roots, training_only=recipe.training_only)
    check_data(recipe, dataset)
    return dataset


@dataclass(frozen=True)
class Part:
    """One recipe to run, alone or in a pack."""

    recipe: Recipe
    out: Path
    """Scratch folder of the recipe; files are written to its subfolder ``result``."""
    progress: Progress = lambda fraction, note: None
    tested: Tested | None = None
    keep_student: bool = False
    """Keep the weights of the student of an evaluation."""
    cached_logits: LogitsCache | None = None
    """How the evaluation handles cached logits of its teachers."""


@dataclass(frozen=True)
class Context:
    """Everything needed to run a recipe."""

    part: Part
    store: ReadableStore
    roots: Roots
    dataset: Dataset
    device: str
    shared_machine: bool | None = None
    """This and the next as in :func:`perform`."""
    larger: Key | None = None
    loaded: dict[tuple[str, ...], list[NormalisedNetwork]] = field(default_factory=dict)
    """Teachers in memory, by their keys."""
    opened: dict[Key, SyntheticSet] = field(default_factory=dict)
    """Sets in memory, by key."""

    @functools.cached_property
    def out(self) -> Path:
        folder = self.part.out / "result"
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def progress(self) -> Progress:
        return self.part.progress

    @functools.cached_property
    def cached_logits(self) -> CachedLogits | None:
        """The cached logits of an evaluation that asks teachers, if they are to be kept."""
        from rd3.evaluation.cached_logits import CachedLogits

        keep, recipe = self.part.cached_logits, self.part.recipe
        if keep is None or not asks_teachers(recipe):
            return None
        content = digest([existing(self.store, kind, key).files for kind, key in recipe.parents()])
        return CachedLogits(LogitsFolder(self.roots.home, keep.budget_bytes), content, keep.wanted)

    def _stored(self, kind: type[Kind], keys: tuple[Key, ...]) -> Iterator[tuple[Path, Entry, Kind]]:
        """The verified folder, the entry and the recipe of each of these parents."""
        name = kind.model_fields["kind"].default
        for key in keys:
            folder, entry = self.store.fetch(name, key), existing(self.store, name, key)
            yield folder, entry, recipe_of_kind(entry.recipe, kind)

    def teachers(self, keys: tuple[str, ...]) -> list[NormalisedNetwork]:
        """Teachers, verified on recorded images once per machine, device and torch version."""
        from rd3 import teacher

        if keys not in self.loaded:
            loaded = []
            for folder, entry, recipe in self._stored(TeacherRecipe, keys):
                setting = digest([entry.files, self.dataset.fingerprint, torch.__version__, self.device])
                verified = self.roots.home / "verified" / f"{entry.key[:16]}-{setting[:16]}"
                verify = not verified.exists()
                # Files of an older format of recipes state the former key.
                network = teacher.load(
                    folder, recipe, self.dataset, device=self.device, verify=verify, formerly=entry.formerly
                )
                loaded.append(network)
                if verify:
                    write_atomically(verified, now())
            self.loaded[keys] = loaded
        return self.loaded[keys]

    def statistics(self, keys: tuple[str, ...]) -> list[LayerStatistics]:
        from rd3 import layer_statistics

        return [
            layer_statistics.load(folder, recipe, device=self.device, formerly=entry.formerly)
            for folder, entry, recipe in self._stored(StatisticsRecipe, keys)
        ]

    def dynamics(self, keys: tuple[str, ...]) -> list[Dynamics]:
        from rd3.teacher.dynamics import load

        return [load(self.store.fetch("training_dynamics", key), key) for key in keys]

    def backbones(self, keys: tuple[str, ...]) -> list[Backbone]:
        """Diffusion models, frozen, on the device; loaded anew, as methods may change them."""
        from rd3.diffusion.backbone import open_backbone

        return [
            open_backbone(folder, recipe, self.dataset.info, self.device)
            for folder, _entry, recipe in self._stored(BackboneRecipe, keys)
        ]

    def derived(self, keys: tuple[str, ...]) -> list[Path]:
        """Folders of what was derived from backbones."""
        return [self.store.fetch("derived", key) for key in keys]

    def load_set(self, key: Key, classes: str) -> SyntheticSet:
        """A set in memory, checked on opening."""
        if key not in self.opened:
            folder, class_ids = self.store.fetch("set", key), self.dataset.info.class_ids
            self.opened[key] = SyntheticSet.open(folder, classes=classes, class_ids=class_ids)
        return self.opened[key]

    def init(self, recipe: SetRecipe) -> SetOnDisk | None:
        """The set with a recipe's initial images, checked on opening."""
        if recipe.init is None:
            return None
        folder = self.store.fetch("set", recipe.init)
        return SetOnDisk.open(folder, classes=recipe.classes, class_ids=self.dataset.info.class_ids)

    def larger_set(self) -> Path | None:
        """The folder of the larger set that contains this one, if it is complete."""
        if self.larger is None:
            return None
        try:
            return self.store.fetch("set", self.larger)
        except (DataMissing, DataCorrupt):  # the set is then generated from scratch
            return None

    def spent(self, recipe: SetRecipe) -> dict[str, float]:
        """Recorded generation time of a set's parents whose time counts: not teachers, their dynamics and backbones."""
        counted = [(kind, key) for kind, key in recipe.parents() if KINDS[kind].counts_as_generation]
        results = [existing(self.store, kind, key).result for kind, key in counted]
        return {
            clock: sum((result.get(f"generation_{clock}", result.get(clock, 0.0)) for result in results), 0.0)
            for clock in ("wall_s", "process_s")
        }


Output = tuple[dict[str, Any], str | None]
"""Results for the ledger, and the content digest of a set."""


def _refuse_imported(recipe: Recipe, command: str) -> None:
    if recipe.imported:
        raise RD3Error(f"The {recipe.kind} {recipe.key[:12]} is imported, not computed.", f"import it: {command}")


def _train_teacher(recipe: TeacherRecipe, context: Context) -> Output:
    from rd3 import teacher

    _refuse_imported(recipe, "rd3 teacher import")
    result = teacher.train(recipe, context.dataset, context.out, device=context.device, progress=context.progress)
    return result, None


def _record_dynamics(recipe: TrainingDynamicsRecipe, context: Context) -> Output:
    from rd3.teacher.dynamics import record

    return record(recipe, context.dataset, context.out, device=context.device, progress=context.progress), None


def _collect_statistics(recipe: StatisticsRecipe, context: Context) -> Output:
    from rd3 import layer_statistics

    [teacher] = context.teachers((recipe.teacher,))
    result = layer_statistics.collect(
        recipe, teacher, context.dataset, context.out, device=context.device, progress=context.progress
    )
    return result, None


def _train_backbone(recipe: BackboneRecipe, context: Context) -> Output:
    from rd3.diffusion.training import train

    _refuse_imported(recipe, "rd3 diffusion import")
    return train(recipe, context.dataset, context.out, device=context.device, progress=context.progress), None


def _derive(recipe: DerivedRecipe, context: Context) -> Output:
    derivation, settings = derivation_of(recipe)
    [backbone] = context.backbones((recipe.backbone,))
    stopwatch = Stopwatch()
    found = derivation.derive(recipe, settings, backbone, context.dataset, context.out, context.progress)
    return {**stopwatch.spent(), **found}, None


def _synthesize(recipe: SetRecipe, context: Context, **options: Any) -> Manifest | None:
    _refuse_imported(recipe, "rd3 set import")
    return synthesize(
        recipe,
        context.dataset,
        context.teachers(recipe.teachers),
        context.out,
        statistics=context.statistics(recipe.statistics),
        dynamics=context.dynamics(recipe.dynamics),
        backbones=context.backbones(recipe.backbones),
        derived=context.derived(recipe.derived),
        init=context.init(recipe),
        device=context.device,
        progress=context.progress,
        shared_machine=context.shared_machine,
        **options,
    )


def _generate_set(recipe: SetRecipe, context: Context) -> Output:
    manifest = _synthesize(recipe, context, larger=context.larger_set())
    assert manifest is not None, "all blocks are done"
    generated = SetOnDisk.open(context.out, classes=recipe.classes, class_ids=context.dataset.info.class_ids)
    contact_sheet(generated, context.out / "contact_sheet.png")
    before = context.spent(recipe)
    result = {
        "count": manifest.count,
        "generation_wall_s": manifest.generation_wall_s + before["wall_s"],
        "generation_process_s": manifest.generation_process_s + before["process_s"],
        **{f"preparation_{unit}": value for unit, value in before.items()},
        "peak_mib": manifest.peak_mib,
        # a Phase gives its fields in pairs: wall_s and process_s with their seconds
        **{f"{phase}_{unit}": value for phase, spent in manifest.phases.items() for unit, value in spent},
    }
    return result, manifest.content


def _measure(recipe: RobustnessRecipe, context: Context) -> Output:
    from rd3.robustness.measure import measure

    return measure(
        recipe, context.store, context.dataset, context.out, device=context.device, progress=context.progress
    ), None


def _evaluate(_recipe: EvaluationRecipe, context: Context) -> Output:
    [outcome] = _train_together([context])
    return _written(context, outcome)


def _train_together(contexts: Sequence[Context]) -> list[EvalResult | Exception]:
    """Train the students of evaluations; the result of each, or what ended it."""
    from rd3.evaluation.posteval import train_pack

    # With its folder, so that one that cannot be made is found before the training.
    evaluations = [_evaluation(context, context.out) for context in contexts]
    outcomes = train_pack(evaluations, contexts[0].dataset, device=contexts[0].device)
    for one in evaluations:
        if one.cached_logits is not None and not one.cached_logits.wanted:
            with contextlib.suppress(OSError):  # they count towards the budget, and are deleted when it is used up
                one.cached_logits.folder.discard([Views.of(one.recipe).key])
    return outcomes


def _evaluation(context: Context, out: Path | None = None) -> Evaluation:
    """The input of an evaluation, with its set and teachers from the store; ``out``: where a student would be kept."""
    from rd3.evaluation.student import Evaluation

    part, recipe = context.part, context.part.recipe
    assert isinstance(recipe, EvaluationRecipe)
    synthetic, teachers = context.load_set(recipe.set, recipe.classes), context.teachers(recipe.teachers)
    return Evaluation(
        recipe,
        synthetic.images,
        synthetic.labels,
        teachers,
        part.progress,
        part.tested,
        keep=out / STUDENT if out is not None and part.keep_student else None,
        cached_logits=context.cached_logits,
        soft_labels=synthetic.soft_labels,
    )


@torch_defaults()
def export_labels(
    recipe: EvaluationRecipe,
    store: ReadableStore,
    roots: Roots,
    out: Path,
    *,
    device: str = "cpu",
    precision: Precision | None = None,
) -> int:
    """Write the stored soft labels of an evaluation to a new folder; returns their bytes.

    See :func:`rd3.evaluation.label_files.write_labels`.  Labels are those of training on the same device.
    """
    from rd3.evaluation.label_files import write_labels

    context = Context(Part(recipe, out), store, roots, _open_data(recipe, roots), device)
    return write_labels(_evaluation(context), out, device=device, precision=precision)


def _written(context: Context, outcome: EvalResult | Exception) -> Output:
    if isinstance(outcome, Exception):
        raise outcome
    outcome.write(context.out)
    return outcome.flat(), None


PERFORM: dict[type[Recipe], Callable[[Any, Context], Output]] = {
    TeacherRecipe: _train_teacher,
    TrainingDynamicsRecipe: _record_dynamics,
    StatisticsRecipe: _collect_statistics,
    BackboneRecipe: _train_backbone,
    DerivedRecipe: _derive,
    SetRecipe: _generate_set,
    EvaluationRecipe: _evaluate,
    RobustnessRecipe: _measure,
}
"""How each kind is computed: write files to ``context.out`` and return what the entry says of them."""


@torch_defaults()
def perform(
    recipe: Recipe,
    store: ReadableStore,
    roots: Roots,
    out: Path,
    *,
    device: str = "cpu",
    shared_machine: bool | None = None,
    larger: Key | None = None,
    progress: Progress = lambda fraction, note: None,
    tested: Tested | None = None,
    keep_student: bool = False,
    cached_logits: LogitsCache | None = None,
) -> Entry:
    """Run one recipe in ``out/result`` and return its entry; resumes from files of an earlier attempt there.

    Parents are read from ``store``; storing the files and the entry is up to the caller.  ``shared_machine``, whether
    other work runs at the same time, is recorded in the manifest of a set.  ``larger`` is the key of a set that begins
    with the images of this one, which are copied from it if the store has it.  ``tested`` is called after each test
    during an evaluation, see :class:`rd3.evaluation.student.Evaluation`.  ``keep_student``: the weights of the
    student of an evaluation are one of its files.  ``cached_logits``: how an evaluation handles cached logits of its
    teachers; by default there are none.  Raises subclasses of :class:`RD3Error`.
    """
    part = Part(recipe, Path(out), progress, tested, keep_student, cached_logits)
    context = Context(part, store, roots, _open_data(recipe, roots), device, shared_machine, larger)
    return _entry(context, PERFORM[type(recipe)](recipe, context))


@torch_defaults()
def perform_pack(
    pack: Sequence[Part], store: ReadableStore, roots: Roots, *, device: str = "cpu"
) -> list[Entry | Exception]:
    """Run several evaluations of one dataset together, each with the same result as :func:`perform`.

    The exception that ended an evaluation (:class:`Diverged`, one of its ``tested``, or one of writing its files) is
    returned in place of its entry; errors that affect all, such as out of memory, are raised.  Entries record ``pack``.
    """
    dataset = _open_data(pack[0].recipe, roots)
    shared: dict[str, Any] = {"loaded": {}, "opened": {}}
    contexts = [Context(part, store, roots, dataset, device, **shared) for part in pack]
    entries: list[Entry | Exception] = []
    for context, outcome in zip(contexts, _train_together(contexts), strict=True):
        try:
            entries.append(_entry(context, _written(context, outcome), pack=len(pack)))
        except Exception as error:
            if ends_the_process(error):
                raise
            entries.append(error)
    return entries


def _entry(context: Context, output: Output, **provenance: Any) -> Entry:
    """The ledger entry of a recipe with its files in ``context.out``."""
    (result, content), device, cached_logits = output, context.device, context.cached_logits
    if cached_logits is not None and cached_logits.read:  # not all of the teachers' logits were computed
        provenance["cached_logits"] = "read"
    return Entry.of(
        context.part.recipe,
        context.out,
        result,
        content,
        code_version=__version__,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu",
        device_type=torch.device(device).type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        host=platform.node(),
        finished_at=now(),
        **own_code(context.part.recipe),
        **provenance,
    )


@torch_defaults()
def perform_blocks(
    recipe: SetRecipe,
    store: ReadableStore,
    roots: Roots,
    out: Path,
    blocks: tuple[int, int],
    *,
    device: str = "cpu",
    progress: Progress = lambda fraction, note: None,
) -> None:
    """Generate every ``step``-th block of a set, starting at ``first``, in ``out/result``; ``blocks`` is (first, step).

    Once the blocks of all shares are in one such folder, :func:`perform` completes the set there.
    """
    _refuse_imported(recipe, "rd3 set import")
    context = Context(Part(recipe, Path(out), progress), store, roots, _open_data(recipe, roots), device)
    first, step = blocks
    every = METHODS.get(recipe.method)().blocks(recipe, context.dataset.info)
    _synthesize(recipe, context, only_blocks=[block.index for block in every[first::step]])
