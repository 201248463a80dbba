"""Import weights trained elsewhere: read, check, hash and test them, and store them as a teacher."""

from __future__ import annotations

import http.client
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rd3.augment import to_unit
from rd3.datasets import Dataset, DatasetInfo
from rd3.device import usable_device
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.foreign_files import broken_file
from rd3.known_constants import constants, option, spelled
from rd3.models import NormalisedNetwork, build_network
from rd3.recipe import Data, Normalisation, SourceSplit, TeacherRecipe
from rd3.stopwatch import Stopwatch
from rd3.teacher.artifact import Predictions, Progress, verification_list, write_teacher
from rd3.teacher.class_order import FOUND, check_class_order_options, imagenet_outputs, outputs_of
from rd3.teacher.fit import check_fit
from rd3.teacher.plausibility import (
    better_constants,
    check_above_chance,
    check_finite,
    check_not_permuted,
    check_outputs,
    found_order,
    sentence,
)
from rd3.teacher.state_dicts import COUNTER, Weights, WeightsFile
from rd3.teacher.steadiness import check_steady, observed
from rd3.tensor_bytes import sha256_of

TORCHVISION = "torchvision:"
_ASKED_IMAGES = 8
"""Images on which it is seen whether logits depend on anything else, as those of a user's own network may."""
_ORDER_FIX = (
    "state the class of each output: --class-order FILE; or, if that is not known, apply the order that was found: "
    f"--class-order {FOUND}"
)
_CHANCE_FIX = (
    "give the constants of its training (--normalised) and check dataset, network and weights; --allow-chance imports "
    "it all the same"
)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def import_weights(
    source: Path | str,
    *,
    dataset: Dataset,
    network: str,
    out: Path,
    normalisation: Normalisation | str | None = None,
    split: SourceSplit = "unknown",
    prune_to_classes: bool = False,
    class_order: Sequence[str] | None = None,
    entry: str | None = None,
    allow_chance: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
    notice: Callable[[str], None] = _warn,
) -> tuple[TeacherRecipe, dict[str, Any]]:
    """Store weights trained elsewhere as a teacher of ``dataset`` in ``out``; returns its recipe and its figures.

    ``source`` is a safetensors file, a state dict saved by torch (``.pt``, ``.pth``), or ``torchvision:<name>`` for
    the first ImageNet-1K weights of torchvision (from its cache, else downloaded).  Keys are torchvision's, below any
    wrappers and prefixes; ``entry`` names them where several networks fit (:meth:`WeightsFile.weights`).
    ``normalisation`` is that of the training: constants, or a text for :func:`rd3.known_constants.constants` (the
    dataset's if None).  ``split`` is the part of the data used for it.  Half precision becomes fp32.

    The outputs must be the dataset's classes in order.  ``prune_to_classes`` keeps only the rows of a 1000-class
    ImageNet classifier's last layer that belong to them; ``class_order`` lists the class of each row, by id, name or
    label, or is ``"found"`` for the order in which the network classifies training images best.

    ``notice`` gets sentences on what was found and does not prevent the import; by default they are warnings.

    Raises :class:`DataMissing` or :class:`DataCorrupt` for a file that cannot be read, :class:`ClassOrderError` for
    another number of classes and for classes that are permuted, and :class:`BadValue` for weights of another network,
    values that are not finite, and, unless ``allow_chance``, for a network that is not better than chance.
    """
    stopwatch = Stopwatch()
    info, device = dataset.info, usable_device(device)
    check_class_order_options(prune_to_classes, class_order)
    if isinstance(normalisation, str):
        normalisation = constants(normalisation, info.normalisation)
    built = build_network(network, info.num_classes, info.resolution, normalisation or info.normalisation)
    found, order = _fitting(source, built, network, info, entry, prune_to_classes, class_order)
    built.network.load_state_dict(found.tensors)
    for sentence_on_file in found.said:
        notice(sentence_on_file)
    built = built.eval().to(device)
    pixels = to_unit(dataset.images("validation", verification_list(dataset)[:_ASKED_IMAGES]).to(device))
    with observed() as called, torch.inference_mode():
        check_steady(f"Network {network} with the weights of {source}", built, pixels, called)
    if class_order == FOUND:
        order = [int(row) for row in found_order(built, dataset, device)]
        with torch.no_grad():
            for parameter in built.head.parameters():
                parameter.copy_(parameter[order])
    recipe = TeacherRecipe(
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split=split),
        classes=info.classes,
        network=network,
        resolution=info.resolution,
        normalisation=built.normalisation,
        weights=weights_digest(built.network.state_dict(), info.class_ids, built.normalisation),
    )
    name = str(source) if str(source).startswith(TORCHVISION) else Path(source).name
    used, in_file = built.normalisation, found.normalisation

    def examine(tested: Predictions) -> None:
        """Refuse a teacher that cannot know the classes."""
        check_outputs(name, tested)
        exchanged = check_not_permuted(name, tested, built, dataset, device, _ORDER_FIX)
        better = better_constants(built.network, used, dataset, device, in_file)
        if not allow_chance:
            fix = f"{better.fix}, if it was trained so" if better else _CHANCE_FIX
            check_above_chance(name, tested, dataset, better, fix)
        if exchanged:
            notice(exchanged)
        if better and better.worth_reporting(normalisation is not None):
            notice(sentence(f"{better.accuracies}; if it was trained so, {better.fix}"))
        if in_file and in_file not in (used, better and better.normalisation):
            notice(
                f"The file itself holds the constants {spelled(in_file)}; {spelled(used)} are used. "
                f"If it was trained with its own, import it with --normalised {option(in_file)}."
            )

    manifest = write_teacher(
        Path(out), recipe, built, dataset, device=device, origin=f"imported from {name}", curve=[],
        progress=progress, class_order=order, examine=examine,
    )  # fmt: skip
    return recipe, manifest.test_figures() | stopwatch.spent()


def _fitting(
    source: Path | str,
    built: NormalisedNetwork,
    network: str,
    info: DatasetInfo,
    entry: str | None,
    prune: bool,
    class_order: Sequence[str] | None,
) -> tuple[Weights, list[int] | None]:
    """The weights in the names and shapes of the network, and the rows of its last layer that were kept."""
    expected = built.network.state_dict()
    published = str(source).startswith(TORCHVISION)
    checkpoint = WeightsFile(source, _torchvision(str(source))) if published else WeightsFile.open(Path(source))
    found = checkpoint.weights(expected, entry)
    head = f"{built.head_name}.weight"
    tensors = {name: _detached(name, value, source) for name, value in found.tensors.items()}
    order = None
    if head in tensors and (prune or (class_order is not None and class_order != FOUND)):
        order = _rows_to_keep(tensors[head], source, head, info, None if prune else class_order)
        tensors |= {name: tensors[name][order] for name in (head, f"{built.head_name}.bias") if name in tensors}
    # Old files lack the batch norms' counters, which change no prediction.
    tensors = {name: value for name, value in expected.items() if name.endswith(COUNTER)} | tensors
    check_fit(tensors, expected, head, checkpoint, network, info)
    check_finite(str(source), tensors.items())
    single = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return found._replace(tensors=single), order


def _rows_to_keep(
    head: torch.Tensor, source: Path | str, name: str, info: DatasetInfo, class_order: Sequence[str] | None
) -> list[int]:
    """Those that ``class_order`` names, or, without it, that stand for the dataset's classes in ImageNet-1K."""
    if class_order is None:
        if len(head) != 1000:
            raise ClassOrderError(
                f"{name} in {source} has {len(head)} rows, pruning needs ImageNet-1K's 1000.", "import without pruning"
            )
        return imagenet_outputs(info.class_ids, info.name)
    if len(class_order) != len(head):  # of a shorter list it is not known which rows it names
        raise ClassOrderError(
            f"The class order has {len(class_order)} entries, {name} in {source} has {len(head)} rows.",
            f"name the class of each row, {len(head)} in all; rows of other classes have any other name, such as '-'",
        )
    return outputs_of(class_order, info)


def _detached(name: str, value: torch.Tensor, source: Path | str) -> torch.Tensor:
    """The tensor without its graph; raises for tensors that hold no plain values."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        kind = "quantized" if value.is_quantized else "complex" if value.is_complex() else "empty or sparse"
        raise BadValue(f"{name} in {source} is a {kind} tensor.", "save the weights as plain floating-point tensors")
    return value.detach()


def weights_digest(
    tensors: Mapping[str, torch.Tensor], class_ids: tuple[str, ...], normalisation: Normalisation
) -> str:
    """sha256 over the floating tensors as fp32 (name, shape, bytes; by name), the class list and the constants.

    Integer buffers (how many batches a batch norm saw) change no prediction and are left out.
    """
    floats = [(name, value.float()) for name, value in sorted(tensors.items()) if value.is_floating_point()]
    weights = [part for name, value in floats for part in (f"{name} float32 {tuple(value.shape)}\n", value)]
    return sha256_of([*weights, "\n".join(class_ids), f"\n{normalisation.mean} {normalisation.std}"])


def _torchvision(source: str) -> dict[str, torch.Tensor]:
    from torchvision import models

    name = source.removeprefix(TORCHVISION)
    if name not in models.list_models(module=models):
        raise BadValue(f"torchvision has no classifier {name!r}.", "see torchvision.models.list_models()")
    published = models.get_model_weights(name)
    others = [one.name for one in published]
    if "IMAGENET1K_V1" not in others:
        raise BadValue(
            f"torchvision has no weights IMAGENET1K_V1 of {name}, only {', '.join(others)}.",
            "download these and give their file",
        )
    weights = published.IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
        return state
    except (OSError, http.client.HTTPException) as error:  # among them every failure to reach the network
        raise DataMissing(
            f"The weights of {source} are not in {cached} and cannot be downloaded ({error}).",
            f"download {weights.url} elsewhere and put it there",
        ) from None
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        broken = broken_file(cached) if cached.is_file() else None
        raise DataCorrupt(
            f"The weights of {source} cannot be read: {broken.message if broken else f'{cached} is damaged.'}",
            f"delete {cached}, then import again",
        ) from None
