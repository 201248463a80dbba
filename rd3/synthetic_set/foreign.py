"""Import sets generated elsewhere: a folder of images per class, or a file of tensors.

Pixels are stored as given (8 bits or float32).  The recipe of an imported set holds its content digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rd3.datasets import Dataset, DatasetInfo
from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.recipe import Data, Normalisation, SetRecipe, SourceSplit
from rd3.synthetic_set.block import Block
from rd3.synthetic_set.manifest import content_digest, row_digest
from rd3.synthetic_set.writer import SetWriter

if TYPE_CHECKING:
    import torch

IMPORTED = "imported"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_ROUNDING = 1e-3
"""Tolerance outside [0, 1] that is attributed to rounding after denormalisation."""
_BLOCK_ROWS = 1000


def import_folder(source: Path, dataset: Dataset, out: Path, *, split: SourceSplit = "unknown") -> SetRecipe:
    """Import ``source/<class>/*.png|jpg|...``; folders are named by class id, class name or five-digit label.

    Images of a class are sorted by name.  ``split`` is the split that the set was generated from, if known.  Writes the
    set into ``out`` and returns its recipe.
    """
    import torch

    source, info = Path(source), dataset.info
    if not source.is_dir():
        raise DataMissing(f"There is no folder {source}.", "give a folder with one folder of images per class")
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    by_name = _labels_by_name([path.name for path in folders], info)
    images, labels = [], []
    for folder in folders:
        if folder.name not in by_name:
            raise BadValue(
                f"Folder {folder} is not a class of {info.name}, whose classes are {', '.join(info.class_ids[:3])} ...",
                "name folders by class id, class name or five-digit label",
            )
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES):
            images.append(_decode(path, info.resolution))
            labels.append(by_name[folder.name])
    if not images:
        raise DataMissing(f"{source} holds no images in class folders.", f"use files ending in {', '.join(_SUFFIXES)}")
    return import_tensors((torch.stack(images), torch.tensor(labels)), dataset, out, split=split)


def _labels_by_name(folders: Sequence[str], info: DatasetInfo) -> dict[str, int]:
    by_number = {f"{label:05d}": label for label in range(info.num_classes)}
    by_name = {name: label for label, name in enumerate(info.class_names)}
    by_id = {name: label for label, name in enumerate(info.class_ids)}
    # All folders must use the same naming, as 00001 could be both a name and a label.
    for naming in (by_id, by_name, by_number):
        if all(folder in naming for folder in folders):
            return naming
    return {**by_name, **by_id}


def _decode(path: Path, side: int) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise DataCorrupt(f"{path} cannot be decoded as an image.", "replace or delete that file") from None
    if pixels.shape != (side, side, 3):
        raise BadValue(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, this dataset has {side}x{side}.",
            "resize the images as described by their authors",
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)


def import_tensors(
    source: Path | str | tuple[torch.Tensor, torch.Tensor],
    dataset: Dataset,
    out: Path,
    *,
    split: SourceSplit = "unknown",
    normalised: Normalisation | None = None,
) -> SetRecipe:
    """Import (images, labels): two tensors, or a ``.safetensors`` or ``.pt`` file with tensors of these names.

    ``images``: (N, 3, H, W) uint8, float in [0, 1], or float normalised with ``normalised``; ``labels``: (N,) integers
    in the dataset's class order, in any row order, equally many of each class.  Writes the set into ``out`` and returns
    its recipe.
    """
    info = dataset.info
    images, labels = source if isinstance(source, tuple) else _load(Path(source))
    images, labels = checked_tensors(images, labels, info, normalised=normalised)
    order = _k_major(labels, info)
    images, labels = images[order].contiguous(), labels[order]
    dtype, ipc = str(images.dtype).removeprefix("torch."), len(labels) // info.num_classes
    rows = zip((row_digest(image) for image in images.numpy()), labels.tolist(), strict=True)
    recipe = SetRecipe(
        method=IMPORTED,
        version=1,
        settings={},
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split=split),
        classes=info.classes,
        resolution=info.resolution,
        ipc=ipc,
        content=content_digest(dtype, tuple(images.shape), rows),
    )
    _write(recipe, info, images, Path(out))
    return recipe


def _load(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataMissing(f"There is no file {path}.", "give a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise BadValue(f"{path.name} ends in {path.suffix!r}, expected .safetensors or .pt.", "save it as either")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError):
        raise DataCorrupt(
            f"{path} does not hold plain tensors.", "save {'images': ..., 'labels': ...} as .safetensors"
        ) from None
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    names = sorted(str(name) for name in found) if isinstance(found, dict) else [type(found).__name__]
    if not isinstance(found, dict) or not all(isinstance(found.get(n), torch.Tensor) for n in ("images", "labels")):
        raise BadValue(
            f"{path.name} holds {', '.join(names[:5])}, expected tensors 'images' and 'labels'.", "rename them"
        )
    return found["images"], found["labels"]


def checked_tensors(
    images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo, *, normalised: Normalisation | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check and convert a user's images and labels to (N, 3, H, W) uint8 or float32 in [0, 1] and (N,) int64.

    Does not require equally many images per class.  Raises :class:`BadValue`.
    """
    import torch

    side = info.resolution
    images, labels = images.detach().cpu(), labels.detach().cpu()
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
        last = images.ndim == 4 and images.shape[-1] == 3
        raise BadValue(
            f"images have shape {tuple(images.shape)}, {info.name} needs (N, 3, {side}, {side}).",
            "call images.permute(0, 3, 1, 2)" if last else "reshape or resize them",
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or tuple(labels.shape) != (len(images),):
        raise BadValue(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected ({len(images)},) integers.",
            "give one class number for each image",
        )
    labels = labels.to(torch.int64)
    outside = ((labels < 0) | (labels >= info.num_classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise BadValue(
            f"Row {row} has label {int(labels[row])}, {info.name} has labels 0 to {info.num_classes - 1}.",
            "check the class order and that labels start at 0",
        )
    return _pixels(images, normalised), labels


def _pixels(images: torch.Tensor, normalised: Normalisation | None) -> torch.Tensor:
    import torch

    if images.dtype == torch.uint8 and normalised is None:
        return images
    if not images.dtype.is_floating_point:
        raise BadValue(
            f"images are {images.dtype}{' but declared as normalised' if normalised else ''}, expected uint8 or float.",
            "convert them to one of these",
        )
    images = images.float()
    if normalised is not None:
        mean = torch.tensor(normalised.mean).view(1, 3, 1, 1)
        images = images * torch.tensor(normalised.std).view(1, 3, 1, 1) + mean
    if not bool(images.isfinite().all()):
        raise BadValue("images contain values that are not finite.", "check how they were generated")
    low, high = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 1.0)
    slack = _ROUNDING if normalised is not None else 0.0
    if low < -slack or high > 1 + slack:
        raise BadValue(
            f"Float images range from {low:.3g} to {high:.3g}, expected [0, 1].",
            "give the mean and std that they were normalised with"
            if normalised is not None
            else "divide by 255"
            if low >= 0 and high <= 255 and high > 20
            else "give the constants that they were normalised with (--normalised)",
        )
    return images.clamp(0, 1)


def _k_major(labels: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """Row order that puts image k of class c at k * C + c; raises unless all classes have equally many images."""
    import torch

    counts = Counter(labels.tolist())
    per_class = [counts.get(label, 0) for label in range(info.num_classes)]
    usual = Counter(per_class).most_common(1)[0][0]
    odd = [label for label, count in enumerate(per_class) if count != usual or count == 0]
    if odd:
        raise BadValue(
            f"Class {odd[0]} ({info.class_ids[odd[0]]}) has {per_class[odd[0]]} images, most classes have {usual}.",
            "use equally many images of every class",
        )
    by_class = [(labels == label).nonzero()[:, 0] for label in range(info.num_classes)]
    return torch.stack(by_class, dim=1).flatten()


def _write(recipe: SetRecipe, info: DatasetInfo, images: torch.Tensor, out: Path) -> None:
    classes = info.num_classes
    members = [(row % classes, row // classes) for row in range(len(images))]
    starts = range(0, len(images), _BLOCK_ROWS)
    blocks = [Block(index, tuple(members[start : start + _BLOCK_ROWS])) for index, start in enumerate(starts)]
    writer = SetWriter(out, recipe, info, blocks)
    for block, start in zip(blocks, starts, strict=True):
        writer.add(block, images[start : start + _BLOCK_ROWS])
    writer.finish()
