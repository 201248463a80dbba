"""Import weights trained elsewhere: read, check, hash and test them, and store them as a teacher."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rd3.datasets import Dataset, dataset_info
from rd3.device import usable_device
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.models import build_network
from rd3.recipe import Data, Normalisation, SourceSplit, TeacherRecipe
from rd3.teacher.artifact import Progress, write_teacher

TORCHVISION = "torchvision:"


def import_weights(
    source: Path | str,
    *,
    dataset: Dataset,
    network: str,
    out: Path,
    normalisation: Normalisation | None = None,
    split: SourceSplit = "unknown",
    prune_to_classes: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
) -> tuple[TeacherRecipe, dict[str, Any]]:
    """Store weights trained elsewhere as a teacher of ``dataset`` in ``out``; returns its recipe and its figures.

    ``source`` is a safetensors file, a state dict saved by torch (``.pt``, ``.pth``), or ``torchvision:<name>`` for
    the first ImageNet-1K weights of torchvision (from its cache, else downloaded).  Keys are torchvision's; a prefix
    ``module.`` is dropped; half precision becomes fp32.  ``normalisation`` is that of the training (the dataset's if
    None), ``split`` the part of the data used for it.  ``prune_to_classes`` keeps only the rows of a 1000-class
    ImageNet classifier's last layer that belong to the dataset's classes.

    Raises :class:`DataMissing` or :class:`DataCorrupt` for a file that cannot be read, :class:`ClassOrderError` for
    another number of classes, and :class:`BadValue` for weights of another network.
    """
    wall, process = time.perf_counter(), time.process_time()
    info = dataset.info
    tensors = _decoded(source)
    built = build_network(network, info.num_classes, info.resolution, normalisation or info.normalisation)
    head = (f"{built.head_name}.weight", f"{built.head_name}.bias")
    if prune_to_classes:
        rows = imagenet_rows(info.class_ids, info.name)
        tensors |= {name: _rows(tensors, name, rows, source) for name in head if name in tensors}
    expected = built.network.state_dict()
    # Old files lack the batch norms' counters, which change no prediction.
    tensors = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")} | tensors
    _check_fit(tensors, expected, head[0], source, network, info.name)
    built.network.load_state_dict(tensors)
    recipe = TeacherRecipe(
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split=split),
        classes=info.classes,
        network=network,
        resolution=info.resolution,
        normalisation=built.normalisation,
        weights=weights_digest(tensors, info.class_ids, built.normalisation),
    )
    origin = str(source) if str(source).startswith(TORCHVISION) else Path(source).name
    device = usable_device(device)
    manifest = write_teacher(
        Path(out), recipe, built.to(device), dataset, device=device, origin=f"imported from {origin}", curve=[],
        progress=progress,
    )  # fmt: skip
    return recipe, {
        "top1_pct": manifest.test_top1_pct,
        "correct": manifest.test_correct,
        "tested": manifest.test_count,
        "tested_on": manifest.tested_on,
        "wall_s": time.perf_counter() - wall,
        "process_s": time.process_time() - process,
    }


def weights_digest(
    tensors: Mapping[str, torch.Tensor], class_ids: tuple[str, ...], normalisation: Normalisation
) -> str:
    """sha256 over the floating tensors as fp32 (name, shape, bytes; by name), the class list and the constants.

    Integer buffers (how many batches a batch norm saw) change no prediction and are left out.
    """
    state = hashlib.sha256()
    for name in sorted(tensors):
        if tensors[name].is_floating_point():
            value = tensors[name].float().contiguous()
            state.update(f"{name} float32 {tuple(value.shape)}\n".encode())
            state.update(value.numpy().tobytes())
    state.update("\n".join(class_ids).encode())
    state.update(f"\n{normalisation.mean} {normalisation.std}".encode())
    return state.hexdigest()


def imagenet_rows(class_ids: tuple[str, ...], dataset: str) -> list[int]:
    """Positions of these wnids among the thousand classes of ImageNet-1K."""
    place = {wnid: index for index, wnid in enumerate(dataset_info("imagenet1k").class_ids)}
    strange = [name for name in class_ids if name not in place]
    if strange:
        raise ClassOrderError(
            f"Class {strange[0]!r} of {dataset} is none of ImageNet-1K's, so no row of the classifier is its.",
            "import without pruning",
        )
    return [place[name] for name in class_ids]


def _rows(tensors: dict[str, torch.Tensor], name: str, rows: list[int], source: Path | str) -> torch.Tensor:
    if len(tensors[name]) != 1000:
        raise ClassOrderError(
            f"{name} in {source} has {len(tensors[name])} rows, pruning needs ImageNet-1K's 1000.",
            "import without pruning",
        )
    return tensors[name][rows]


def _decoded(source: Path | str) -> dict[str, torch.Tensor]:
    """The state dict, floats as fp32, without ``module.``."""
    plain = _torchvision(str(source)) if str(source).startswith(TORCHVISION) else _from_file(Path(source))
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in plain.items()
    }


def _from_file(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataMissing(f"There is no file {path}.", "give the path of a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DataCorrupt(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}",
            "save the plain state dict as .safetensors, or with torch.save",
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise DataCorrupt(f"{path} holds no state dict.", "save network.state_dict()")
    return found


def _torchvision(source: str) -> dict[str, torch.Tensor]:
    from torchvision import models

    name = source.removeprefix(TORCHVISION)
    if name not in models.list_models(module=models):
        raise BadValue(f"torchvision has no classifier {name!r}.", "see torchvision.models.list_models()")
    weights = models.get_model_weights(name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
        return state
    except OSError as error:  # among them every failure to reach the network
        raise DataMissing(
            f"The weights of {source} are not in {cached} and cannot be downloaded ({error}).",
            f"download {weights.url} elsewhere and put it there",
        ) from None
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise DataCorrupt(f"The weights of {source} cannot be read: {error}", f"delete {cached}") from None


def _check_fit(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    head: str,
    source: Path | str,
    network: str,
    dataset: str,
) -> None:
    """Names and shapes are those of the network, or an error that names the first that is not."""
    outputs = tensors[head].shape if head in tensors else expected[head].shape
    if outputs[0] != expected[head].shape[0] and outputs[1:] == expected[head].shape[1:]:
        raise ClassOrderError(
            f"{source} is a classifier of {outputs[0]} classes, {dataset} has {expected[head].shape[0]}.",
            "import it for its own dataset, or prune an ImageNet-1K classifier to the dataset's classes",
        )
    for name in sorted(set(expected) | set(tensors)):
        got, wanted = tensors.get(name), expected.get(name)
        if got is None or wanted is None or got.shape != wanted.shape:
            has = "nothing" if got is None else tuple(got.shape)
            needs = "nothing" if wanted is None else tuple(wanted.shape)
            raise BadValue(
                f"{source} does not fit {network}: {name} is {has}, expected {needs}.",
                "name the network that it was trained as",
            )
