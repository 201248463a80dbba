"""Generate one synthetic set: the loop over a method's blocks, with resume and time measurement.

A block is a group of images that a method generates without looking at the images of any other group.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rd3.data_checks import check_training_images
from rd3.datasets import Dataset
from rd3.device import peak_mib, repeatable_kernels, reset_peak, usable_device
from rd3.errors import BadValue, ClassOrderError, Unsupported
from rd3.lazy import torch
from rd3.methods import METHODS, Context, Method, Settings
from rd3.recipe import SetRecipe
from rd3.synthetic_set.manifest import MANIFEST, Manifest, read_manifest
from rd3.synthetic_set.opened import SetOnDisk
from rd3.synthetic_set.writer import SetWriter
from rd3.values import first_mistake

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone
    from rd3.layer_statistics import LayerStatistics
    from rd3.models import NormalisedNetwork
    from rd3.teacher.dynamics import Dynamics


def synthesize(
    recipe: SetRecipe,
    dataset: Dataset,
    teachers: Sequence[NormalisedNetwork],
    out: Path,
    *,
    statistics: Sequence[LayerStatistics] = (),
    dynamics: Sequence[Dynamics] = (),
    backbones: Sequence[Backbone] = (),
    derived: Sequence[Path] = (),
    init: SetOnDisk | None = None,
    larger: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, note: None,
    only_blocks: Collection[int] | None = None,
    blocks_at_once: int | None = None,
    shared_machine: bool | None = None,
) -> Manifest | None:
    """Generate the set of ``recipe`` in the folder ``out``; complete blocks from an earlier attempt are kept.

    ``teachers``, in the order of ``recipe.teachers``, are frozen, in eval mode, on ``device``.  ``statistics`` (one for
    each teacher), ``dynamics``, ``backbones`` (which the method may change), ``derived`` (folders of what was derived
    from each backbone) and ``init`` (the set with the initial images) are those that the recipe names.  ``larger`` is
    the folder of a set that begins with this one: its blocks are copied, with their generation time.  ``progress`` gets
    the finished fraction (0-1) of the wanted blocks and a note.  ``only_blocks`` generates only these blocks; the call
    that completes the last block writes and returns the manifest, earlier ones return None.  ``blocks_at_once`` blocks
    are generated together, by default as many as the method chooses for ``device``; their time is divided evenly.
    ``shared_machine``, whether other work runs on the machine at the same time, is recorded in the manifest.

    Raises :class:`BadValue`, :class:`ClassOrderError` or :class:`DataCorrupt` if recipe, dataset, teachers, statistics
    and init do not belong together, and :class:`Unsupported` if the method cannot generate the set.
    """
    device, out = usable_device(device), Path(out)
    method = _checked(recipe, dataset, teachers)
    for what, named, given in (
        ("{} teachers", recipe.teachers, teachers),
        ("statistics of {} teachers", recipe.statistics, statistics),
        ("{} training dynamics", recipe.dynamics, dynamics),
        ("{} diffusion backbones", recipe.backbones, backbones),
        ("{} results derived from backbones", recipe.derived, derived),
    ):
        if len(named) != len(given):
            raise BadValue(f"Recipe {recipe.key[:8]} names {what.format(len(named))}, got {len(given)}.")
    settings = _settings(recipe, method)
    _check_statistics(recipe, statistics)
    _check_init(recipe, init)
    info = dataset.info
    if (out / MANIFEST).is_file() and read_manifest(out).key == recipe.key:
        return SetOnDisk.open(out, classes=recipe.classes, class_ids=info.class_ids).manifest
    blocks = method.blocks(recipe, info)
    writer = SetWriter(out, recipe, info, blocks)
    (out / MANIFEST).unlink(missing_ok=True)  # of another recipe
    done = writer.done()  # deletes blocks that are of another recipe or damaged
    if larger is not None:
        its_blocks = method.blocks(read_manifest(larger).recipe_of_set(), info)
        done = writer.copy_blocks(larger, its_blocks)  # the copied ones and those that were there
    context = Context(
        recipe=recipe,
        settings=settings,
        info=info,
        dataset=dataset,
        teachers=teachers,
        device=device,
        statistics=statistics,
        dynamics=dynamics,
        backbones=backbones,
        derived=derived,
        init=init,
    )
    wanted = [block for block in blocks if only_blocks is None or block.index in only_blocks]
    due = [block for block in wanted if block.index not in done]
    at_once = blocks_at_once or method.blocks_at_once(info, device)
    finished = len(wanted) - len(due)
    for first in range(0, len(due), at_once):
        together = due[first : first + at_once]
        before, share = finished / len(wanted), len(together) / len(wanted)
        note = _note(finished + 1, len(together), len(wanted))
        progress(before, note)
        context.progress = _part_of(progress, before, share, note)
        context.phases = {}
        reset_peak(device)
        with repeatable_kernels():
            images = method.make_many(together, context)
        phases = {
            name: {clock: seconds / len(together) for clock, seconds in spent.items()}
            for name, spent in context.phases.items()
        }
        peak = peak_mib(device)
        for block, own in zip(together, images, strict=True):
            writer.add(block, own, phases=phases, peak_mib=peak)
        finished += len(together)
    progress(1.0, f"{finished} of {len(wanted)} blocks")
    if len(writer.done()) < len(blocks):
        return None
    return writer.finish(device=_device_name(device), threads=torch.get_num_threads(), shared_machine=shared_machine)


def _part_of(progress: Callable[[float, str], None], before: float, share: float, note: str) -> Callable[[float], None]:
    """``progress`` for a part of the whole: ``share`` of it, after the fraction ``before``."""
    return lambda fraction: progress(before + fraction * share, note)


def _note(first: int, count: int, blocks: int) -> str:
    return f"block {first} of {blocks}" if count == 1 else f"blocks {first} to {first + count - 1} of {blocks}"


def _checked(recipe: SetRecipe, dataset: Dataset, teachers: Sequence[NormalisedNetwork]) -> Method:
    """The method of the recipe; raises if recipe, dataset and teachers do not belong together."""
    method, info = METHODS.get(recipe.method)(), dataset.info
    if method.version != recipe.version:
        raise BadValue(
            f"The recipe needs version {recipe.version} of method {recipe.method}, this is version {method.version}.",
            "make the recipe anew: plan its grid again",
        )
    check_training_images(recipe, dataset)
    for number, teacher in enumerate(teachers):
        if teacher.training or any(parameter.requires_grad for parameter in teacher.parameters()):
            raise BadValue(
                f"Teacher {number} of recipe {recipe.key[:8]} is in training mode or not frozen.",
                "call `teacher.eval().requires_grad_(False)`",
            )
    support = method.supports(info, recipe.ipc)
    if not support.ok:
        raise Unsupported(
            f"Method {recipe.method} cannot generate this set: {support.reason}.", "choose another IPC or method"
        )
    return method


def _settings(recipe: SetRecipe, method: Method) -> Settings:
    """The settings of the recipe; raises :class:`BadValue` for those of another release with this method's version."""
    try:
        return method.Settings.model_validate(recipe.settings)
    except ValidationError as error:
        raise BadValue(
            f"The recipe has other settings than method {recipe.method} takes: {first_mistake(error)}.",
            "make the recipe anew: plan its grid again",
        ) from None


def _check_statistics(recipe: SetRecipe, statistics: Sequence[LayerStatistics]) -> None:
    """Raise unless the statistics are of the recipe's teachers, in order."""
    for number, (found, expected) in enumerate(zip(statistics, recipe.teachers, strict=False)):
        if found.teacher != expected:
            raise BadValue(
                f"Statistics {number} of recipe {recipe.key[:8]} are of teacher {found.teacher[:12]}, expected "
                f"{expected[:12]}.",
                "collect statistics of that teacher",
            )


def _check_init(recipe: SetRecipe, init: SetOnDisk | None) -> None:
    """Raise unless ``init`` is given where the recipe names an initial set, and is a set of this dataset."""
    if (init is None) != (recipe.init is None):
        given = "none was given" if init is None else "one was given"
        raise BadValue(f"Recipe {recipe.key[:8]} starts from {recipe.init or 'no initial set'}, but {given}.")
    if init is None:
        return
    manifest = init.manifest
    if (manifest.dataset, manifest.resolution) != (recipe.data.name, recipe.resolution):
        raise BadValue(
            f"The initial {manifest.short} is of {manifest.dataset} at {manifest.resolution} pixels, expected "
            f"{recipe.data.name} at {recipe.resolution}.",
            "start from a set of the same dataset",
        )
    if manifest.classes != recipe.classes:
        raise ClassOrderError(
            f"The initial {manifest.short} has class list {manifest.classes[:12]}, expected {recipe.classes[:12]}.",
            "start from a set with the classes in the same order",
        )
    if manifest.ipc < recipe.ipc:
        raise BadValue(
            f"The initial {manifest.short} has {manifest.ipc} images per class, IPC is {recipe.ipc}.",
            "start from a set of at least that IPC",
        )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"
