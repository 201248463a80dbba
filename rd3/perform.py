"""Perform recipes: parents from a store, files into a folder, and the entry that a ledger keeps.

Neither Ray nor MLflow is needed: :mod:`rd3.run` is the command for machines without them, and trials of a grid call the
same functions.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd3 import __version__
from rd3.datasets import Dataset, Roots, open_dataset
from rd3.errors import ClassOrderError, DataCorrupt, DataMissing, RD3Error
from rd3.recipe import (
    AnyRecipe,
    EvaluationRecipe,
    Key,
    Recipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
    recipe_of_kind,
)
from rd3.store import Entry, ReadableStore, existing, now, sha256_files, write_atomically
from rd3.values import digest

if TYPE_CHECKING:
    from rd3.evaluation.posteval import Evaluation
    from rd3.evaluation.result import EvalResult
    from rd3.layer_statistics import LayerStatistics
    from rd3.models import NormalisedNetwork
    from rd3.synthetic_set import Manifest, SetOnDisk, SyntheticSet

Progress = Callable[[float, str], None]
Tested = Callable[[int, float], None]
"""Called with an epoch (1-based) and the top-1 accuracy in per cent after it."""


def _silent(fraction: float, note: str) -> None:
    """No progress shown."""


def _open_data(recipe: Recipe, roots: Roots) -> Dataset:
    """The dataset of a recipe, which must be the very data that the recipe was written for.

    What is made and tested within the training images is given no others.
    """
    dataset = open_dataset(recipe.data.name, roots, training_only=recipe.training_only)
    if dataset.fingerprint != recipe.data.fingerprint:
        raise DataCorrupt(
            f"Dataset {recipe.data.name} here has fingerprint {dataset.fingerprint[:12]}, "
            f"the recipe was written for {recipe.data.fingerprint[:12]}.",
            "bring the same files, or plan again with these",
        )
    if dataset.info.classes != recipe.classes:
        raise ClassOrderError(
            f"Dataset {recipe.data.name} has class list {dataset.info.classes[:12]}, "
            f"the recipe expects {recipe.classes[:12]}.",
            "plan again with this version",
        )
    return dataset


def _load_teachers(
    keys: tuple[str, ...], store: ReadableStore, dataset: Dataset, roots: Roots, device: str
) -> list[NormalisedNetwork]:
    """Teachers from the store, each verified on its recorded images once per machine, device and torch version."""
    import torch

    from rd3 import teacher

    loaded = []
    for key in keys:
        folder = store.fetch("teacher", key)
        entry = existing(store, "teacher", key)
        recipe = recipe_of_kind(entry.recipe, TeacherRecipe)
        setting = digest([entry.files, dataset.fingerprint, torch.__version__, device])
        verified = roots.home / "verified" / f"{key[:16]}-{setting[:16]}"
        check = not verified.exists()
        loaded.append(teacher.load(folder, recipe, dataset, device=device, verify=check, formerly=entry.formerly))
        if not verified.exists():
            write_atomically(verified, now())
    return loaded


@dataclass(frozen=True)
class _Bench:
    """What a recipe is made with."""

    store: ReadableStore
    roots: Roots
    dataset: Dataset
    out: Path
    device: str
    shared_machine: bool | None
    larger: Key | None
    progress: Progress
    tested: Tested | None = None
    loaded: dict[tuple[str, ...], list[NormalisedNetwork]] = field(default_factory=dict)
    """Teachers that are in memory already, by their keys."""
    opened: dict[Key, SyntheticSet] = field(default_factory=dict)
    """Sets that are in memory already."""

    def teachers(self, keys: tuple[str, ...]) -> list[NormalisedNetwork]:
        if keys not in self.loaded:
            self.loaded[keys] = _load_teachers(keys, self.store, self.dataset, self.roots, self.device)
        return self.loaded[keys]

    def statistics(self, keys: tuple[str, ...]) -> list[LayerStatistics]:
        """Collected statistics, as :func:`rd3.layer_statistics.load` gives them."""
        from rd3 import layer_statistics

        loaded = []
        for key in keys:
            folder = self.store.fetch("statistics", key)
            entry = existing(self.store, "statistics", key)
            recipe = recipe_of_kind(entry.recipe, StatisticsRecipe)
            loaded.append(layer_statistics.load(folder, recipe, device=self.device, formerly=entry.formerly))
        return loaded

    def made_set(self, key: Key, classes: str) -> SyntheticSet:
        """A whole set, checked when it is opened."""
        from rd3.synthetic_set import SyntheticSet

        if key not in self.opened:
            folder, class_ids = self.store.fetch("set", key), self.dataset.info.class_ids
            self.opened[key] = SyntheticSet.open(folder, classes=classes, class_ids=class_ids)
        return self.opened[key]

    def init(self, recipe: SetRecipe) -> SetOnDisk | None:
        """The set that a set starts from, checked."""
        from rd3.synthetic_set import SetOnDisk

        if recipe.init is None:
            return None
        folder = self.store.fetch("set", recipe.init)
        return SetOnDisk.open(folder, classes=recipe.classes, class_ids=self.dataset.info.class_ids)

    def blocks_of_larger(self) -> Path | None:
        """The folder of the larger set that this one may be taken out of, if it is whole."""
        if self.larger is None or self.store.find("set", self.larger) is None:
            return None
        try:
            return self.store.fetch("set", self.larger)
        except (DataMissing, DataCorrupt):  # then this one is made by itself
            return None

    def spent(self, recipe: SetRecipe) -> dict[str, float]:
        """Generation time of what a set is made from, teachers apart; also where it was made long ago."""
        spent = {"wall_s": 0.0, "process_s": 0.0}
        for kind, key in recipe.parents():
            result = {} if kind == "teacher" else existing(self.store, kind, key).result
            for unit in spent:
                spent[unit] += result.get(f"generation_{unit}", result.get(unit, 0.0))
        return spent


_Made = tuple[dict[str, Any], str | None]
"""Figures for the ledger, and the digest of the content where there is one."""


def _make_teacher(recipe: TeacherRecipe, bench: _Bench) -> _Made:
    from rd3 import teacher

    if recipe.training is None:
        raise RD3Error(
            f"Teacher {recipe.key[:12]} is an import; nothing can train it.", "import it: rd3 teacher import"
        )
    result = teacher.train(recipe, bench.dataset, bench.out, device=bench.device, progress=bench.progress)
    return result, None


def _make_statistics(recipe: StatisticsRecipe, bench: _Bench) -> _Made:
    from rd3 import layer_statistics

    [teacher] = bench.teachers((recipe.teacher,))
    result = layer_statistics.collect(
        recipe, teacher, bench.dataset, bench.out, device=bench.device, progress=bench.progress
    )
    return result, None


def _synthesize(recipe: SetRecipe, bench: _Bench, **options: Any) -> Manifest | None:
    from rd3.synthesis import synthesize

    if recipe.content is not None:
        raise RD3Error(f"Set {recipe.key[:12]} is an import; no method can make it.", "import it: rd3 set import")
    return synthesize(
        recipe,
        bench.dataset,
        bench.teachers(recipe.teachers),
        bench.out,
        statistics=bench.statistics(recipe.statistics),
        init=bench.init(recipe),
        device=bench.device,
        progress=bench.progress,
        shared_machine=bench.shared_machine,
        **options,
    )


def _make_set(recipe: SetRecipe, bench: _Bench) -> _Made:
    from rd3.synthetic_set import SetOnDisk, contact_sheet

    manifest = _synthesize(recipe, bench, larger=bench.blocks_of_larger())
    assert manifest is not None, "all blocks were made"
    made = SetOnDisk.open(bench.out, classes=recipe.classes, class_ids=bench.dataset.info.class_ids)
    contact_sheet(made, bench.out / "contact_sheet.png")
    before = bench.spent(recipe)
    result = {
        "count": manifest.count,
        "generation_wall_s": manifest.generation_wall_s + before["wall_s"],
        "generation_process_s": manifest.generation_process_s + before["process_s"],
        "peak_mib": manifest.peak_mib,
        **{f"{phase}_{unit}": value for phase, spent in manifest.phases.items() for unit, value in spent},
    }
    return result, manifest.content


def _make_evaluation(recipe: EvaluationRecipe, bench: _Bench) -> _Made:
    from rd3.evaluation.posteval import train_pack

    [outcome] = train_pack([_evaluation(recipe, bench)], bench.dataset, device=bench.device)
    return _written(outcome, bench.out)


def _evaluation(recipe: EvaluationRecipe, bench: _Bench) -> Evaluation:
    """An evaluation with its set and its teachers from the store."""
    from rd3.evaluation.posteval import Evaluation

    made, teachers = bench.made_set(recipe.set, recipe.classes), bench.teachers(recipe.teachers)
    return Evaluation(recipe, made.images, made.labels, teachers, bench.progress, bench.tested)


def _written(outcome: EvalResult | Exception, out: Path) -> _Made:
    if isinstance(outcome, Exception):
        raise outcome
    outcome.write(out)
    return outcome.flat(), None


_MAKERS: dict[str, Callable[[Any, _Bench], _Made]] = {
    "teacher": _make_teacher,
    "statistics": _make_statistics,
    "set": _make_set,
    "evaluation": _make_evaluation,
}


def perform(
    recipe: AnyRecipe,
    store: ReadableStore,
    roots: Roots,
    out: Path,
    *,
    device: str = "cpu",
    shared_machine: bool | None = None,
    larger: Key | None = None,
    progress: Progress = _silent,
    tested: Tested | None = None,
) -> Entry:
    """Do one recipe into ``out/result`` and say what came of it; resumes what an earlier attempt left there.

    Parents come from ``store``; the caller keeps the files and the entry, and knows whether other work runs beside this
    (``shared_machine``), which a set's manifest says of its times.  ``larger`` is the key of a set of which this one is
    the first images: where the store has it, they are taken from there.  ``tested`` hears of an evaluation's tests
    under way, as :func:`rd3.evaluation.posteval.train_and_test` says.  Raises :class:`RD3Error` children.
    """
    folder = Path(out) / "result"
    folder.mkdir(parents=True, exist_ok=True)
    bench = _Bench(store, roots, _open_data(recipe, roots), folder, device, shared_machine, larger, progress, tested)
    return _entry(recipe, folder, _MAKERS[recipe.kind](recipe, bench), device)


@dataclass(frozen=True)
class Part:
    """One recipe to be made, beside others."""

    recipe: AnyRecipe
    out: Path
    """Its scratch folder; the files are put into ``result`` there."""
    progress: Progress = _silent
    tested: Tested | None = None


def perform_pack(
    pack: Sequence[Part], store: ReadableStore, roots: Roots, *, device: str = "cpu"
) -> list[Entry | Exception]:
    """Do several evaluations of one dataset together, each as :func:`perform` does it, with the same result.

    What ended one of them (:class:`Diverged`, or what its ``tested`` raised) stands in place of its entry.  Entries say
    the size of the pack.  Raises what concerns them all, such as a device that is out of memory.
    """
    from rd3.evaluation.posteval import train_pack

    dataset = _open_data(pack[0].recipe, roots)
    benches: list[_Bench] = []
    shared: dict[str, dict[Any, Any]] = {"loaded": {}, "opened": {}}
    evaluations: list[Evaluation] = []
    for part in pack:
        assert isinstance(part.recipe, EvaluationRecipe)
        folder = Path(part.out) / "result"
        folder.mkdir(parents=True, exist_ok=True)
        benches.append(_Bench(store, roots, dataset, folder, device, None, None, part.progress, part.tested, **shared))
        evaluations.append(_evaluation(part.recipe, benches[-1]))
    found: list[Entry | Exception] = []
    outcomes = train_pack(evaluations, dataset, device=device)
    for part, bench, outcome in zip(pack, benches, outcomes, strict=True):
        if isinstance(outcome, Exception):
            found.append(outcome)
        else:
            found.append(_entry(part.recipe, bench.out, _written(outcome, bench.out), device, pack=len(pack)))
    return found


def _entry(recipe: AnyRecipe, folder: Path, made: _Made, device: str, **provenance: Any) -> Entry:
    """What the ledger says of a recipe whose files are in ``folder``."""
    import torch

    result, content = made
    return Entry(
        kind=recipe.kind,
        key=recipe.key,
        recipe=recipe.model_dump(mode="json"),
        result=result,
        files=sha256_files(folder),
        content=content,
        made={
            "code_version": __version__,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "host": platform.node(),
            "finished_at": now(),
            **provenance,
        },
    )


def perform_blocks(
    recipe: SetRecipe,
    store: ReadableStore,
    roots: Roots,
    out: Path,
    blocks: tuple[int, int],
    *,
    device: str = "cpu",
    progress: Progress = _silent,
) -> None:
    """Make every ``step``-th block of a set from block ``first`` (``blocks``) in ``out/result``.

    Whoever brings the blocks of all shares together in one such folder finishes the set there with :func:`perform`.
    """
    from rd3.methods import METHODS

    folder = Path(out) / "result"
    folder.mkdir(parents=True, exist_ok=True)
    bench = _Bench(store, roots, _open_data(recipe, roots), folder, device, None, None, progress)
    first, step = blocks
    every = METHODS.get(recipe.method)().blocks(recipe, bench.dataset.info)
    _synthesize(recipe, bench, only_blocks=[block.index for block in every[first::step]])
