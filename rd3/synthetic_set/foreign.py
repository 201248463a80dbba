"""Import sets generated elsewhere: a folder of images per class, or a file of tensors.

Pixels are stored as given (8 bits or float32).  The recipe of an imported set holds its content digest.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rd3.datasets import Dataset, DatasetInfo
from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.foreign_files import broken_file, read_text
from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.class_order import StatedOrder
from rd3.inputs.files import (
    IMAGE_SUFFIXES,
    fix_of_layout,
    is_image_file,
    is_litter,
    require_regular,
    require_unbroken_links,
    sentence_on_unread,
    subfolders,
)
from rd3.inputs.names import match_names
from rd3.inputs.notes import Note, Say, warn_of_doubts
from rd3.inputs.pictures import DOUBTFUL, picture_fault, refusing_truncated_pictures, rgb_of
from rd3.inputs.pixels import Space, stated_space
from rd3.lazy import torch
from rd3.recipe import Data, Normalisation, SetRecipe, SourceSplit
from rd3.synthetic_set.array_file import read_array, read_array_file
from rd3.synthetic_set.block import Block
from rd3.synthetic_set.manifest import content_digest, row_digest
from rd3.synthetic_set.parquet_file import read_parquet_file
from rd3.synthetic_set.soft_file import SOFT_LABELS, soft_labels_beside
from rd3.synthetic_set.tensor_file import SUFFIXES, ForeignSet, read_tensor_file
from rd3.synthetic_set.writer import SetWriter

IMPORTED = "imported"
_READERS = {".parquet": read_parquet_file, ".npz": read_array_file}
"""Readers of files that are not torch's, by suffix."""
_BLOCK_ROWS = 1000
"""Images in a block of an imported set."""
_NUMBERS = ("{:05d}", "new{:03d}", "new{:05d}")
"""Names of folders by label: those of RDED, and of SRe2L and what builds on it (CDA, G-VBSM, EDC, CV-DD)."""
_SOFT_FILES = re.compile(
    r".*(logit|relabel|fkd|soft[-_]?(max|label|target)|(?<![a-z])(soft|prob(s|abilit(y|ies))?)(?![a-z]))"
    r"([^.]*|.*\.(pth?|tar|bin|ckpt|safetensors|np[yz]|pkl|pickle|h5|hdf5|mat|parquet|csv|json)(\.(gz|xz|zip))?)"
)
"""Names of files of soft labels, in lower case: a word for them, and the suffix of a file of numbers or none."""
_LISTS = re.compile(r"(class|wnid|synset|label_?names|categor).*\.(txt|json)|label2id\.json|names\.(txt|json)")
"""Names of files beside numbered class folders that state which class a number is."""


def import_folder(
    source: Path, dataset: Dataset, out: Path, *, split: SourceSplit = "unknown", say: Say = warn_of_doubts
) -> SetRecipe:
    """Import ``source/<class>/*.png|jpg|...``; folders are named by class id, class name or label.

    Images of a class are sorted by name.  ``split`` is the split that the set was generated from, if known.  Writes the
    set into ``out`` and returns its recipe.  ``say`` receives what was found, such as files that are not read.  Soft
    labels are read from the file that :func:`rd3.synthetic_set.export_png` writes.
    """
    source, info = Path(source), dataset.info
    if not source.is_dir():
        raise DataMissing(f"There is no folder {source}.", "give a folder with one folder of images per class")
    source = _unwrapped(source, info, say)
    require_unbroken_links(source)
    names = subfolders(source)
    _refuse_soft_label_files(source)
    label_of = _labels_by_name(names, info)
    if not label_of:
        _refuse_files_of_sets(source)
    forms = [form for form in _NUMBERS if all(name == form.format(label_of.get(name, -1)) for name in names)]
    numbered = bool(names and forms)
    order = _stated_order(source) if numbered else None
    images, labels, files = _read_folders(source, names, label_of, info, say)
    left = sentence_on_unread(source, names, [SOFT_LABELS])
    if not images:
        raise DataMissing(
            f"{source} holds no images in class folders{f'; {left}' if left else ''}.",
            fix_of_layout(source) or f"use files ending in {', '.join(IMAGE_SUFFIXES)}, in one folder per class",
        )
    if left:
        say(Note(left, doubtful=True))
    if numbered and order is None:
        say(Note(f"folders are class numbers: {_classes_of_numbers(label_of, info)}"))
    soft_labels, kind = soft_labels_beside(source, files, info, order)
    return _imported(ForeignSet(images, labels, order, soft_labels, kind), dataset, out, split, say)


def _read_folders(
    source: Path, names: Sequence[str], label_of: dict[str, int], info: DatasetInfo, say: Say
) -> tuple[list[torch.Tensor], list[int], list[str]]:
    """(3, H, W) uint8 pixels of every image, their labels and their files, relative to ``source``."""
    images, labels, files = [], [], []
    dropped: Counter[str] = Counter()
    for name in names:
        if name not in label_of:
            raise _not_a_class(source, name, info)
        for path in sorted(path for path in (source / name).iterdir() if is_image_file(path.name)):
            pixels, note = _decode(path, info.resolution)
            images.append(pixels)
            labels.append(label_of[name])
            files.append(f"{name}/{path.name}")
            dropped.update([note] if note else [])
    for what, count in dropped.items():
        say(Note(f"{count} images have {what}", doubtful=what in DOUBTFUL))
    return images, labels, files


def _unwrapped(source: Path, info: DatasetInfo, say: Say) -> Path:
    """The folder with the class folders: ``source``, or the only one in it."""
    inner = source
    while len(names := subfolders(inner)) == 1 and not _labels_by_name(names, info):
        inner = inner / names[0]
    if inner == source or not names:
        return source
    say(Note(f"class folders are read from {inner}"))
    return inner


def _labels_by_name(folders: Sequence[str], info: DatasetInfo) -> dict[str, int]:
    """The label of every folder that is named as a class."""
    numbers = [[form.format(label) for label in range(info.num_classes)] for form in _NUMBERS]
    namings = (info.class_ids, info.class_names, *numbers)
    by_id, by_name, *by_number = (match_names(folders, naming) for naming in namings)
    # Numbers must be those of all folders, as 00001 could be both a name and a label; IDs and names may be mixed.
    for naming in (by_id, by_name, *by_number):
        if len(naming) == len(folders):
            return naming
    return {**by_name, **by_id}


def _not_a_class(source: Path, name: str, info: DatasetInfo) -> BadValue:
    fact = (
        f"Folder {source / name} is not a class of {info.name}, whose classes are {', '.join(info.class_ids[:3])} ..."
    )
    inside = [one for one in subfolders(source) if _labels_by_name(subfolders(source / one), info)]
    if inside:
        return BadValue(
            fact, f"import one of these folders: {', '.join(shlex.quote(str(source / one)) for one in inside)}"
        )
    return BadValue(fact, "name folders by class id, class name or label (00000 or new000)")


def _refuse_files_of_sets(source: Path) -> None:
    """Raise for a folder without class folders that holds files of sets, as a download does, with what to import."""
    files = [path for place in (source, source / "data") for path in sorted(place.glob("[!.]*"))]
    for suffixes in ((".parquet",), (*SUFFIXES, ".npz")):
        found = [path for path in files if path.suffix in suffixes]
        if not found:
            continue
        images, labels = ([path for path in found if what in path.name] for what in ("image", "label"))
        if len(found) == 1:
            fix = f"import the file itself: {shlex.quote(str(found[0]))}"
        elif suffixes == (".parquet",):
            fix = "join them in one file, with to_parquet of the datasets library"
        elif len(images) == len(labels) == 1:
            fix = f"import {shlex.quote(str(images[0]))} --labels {shlex.quote(str(labels[0]))}"
        else:
            fix = f"import one of them: {', '.join(shlex.quote(str(path)) for path in found[:3])}"
        raise BadValue(f"{source} holds no class folders, but {len(found)} {found[0].suffix} file(s).", fix)


def _refuse_soft_label_files(source: Path) -> None:
    """Raise for files of soft labels beside the class folders, other than RD3's own."""
    files = (path.name for path in sorted(source.iterdir()) if path.is_file() and not is_litter(path.name))
    soft = [name for name in files if _SOFT_FILES.fullmatch(name.lower()) and name != SOFT_LABELS]
    if soft:
        raise BadValue(
            f"{source} holds {soft[0]} beside its class folders, which looks like soft labels, but does not say which "
            "row belongs to which image.",
            "import a tensor file with images, labels and soft_labels, or move that file elsewhere to import the "
            "images with hard labels alone",
        )


def _stated_order(source: Path) -> StatedOrder | None:
    """The class order in a list beside numbered class folders."""
    lists = [path for path in sorted(source.iterdir()) if path.is_file() and _LISTS.fullmatch(path.name.lower())]
    return StatedOrder.read(read_text(lists[0]), str(lists[0])) if lists else None


def _classes_of_numbers(label_of: dict[str, int], info: DatasetInfo) -> str:
    """Which class the first numbers and the last one are."""
    pairs = [f"{name} is {info.class_names[label]}" for name, label in sorted(label_of.items())]
    return ", ".join([*pairs[:2], "...", pairs[-1]] if len(pairs) > 3 else pairs)


@refusing_truncated_pictures()
def _decode(path: Path, side: int) -> tuple[torch.Tensor, str | None]:
    """(3, side, side) uint8 pixels of a file, and what was dropped of it."""
    from PIL import Image, UnidentifiedImageError

    try:
        require_regular(path, path.stat())
        with Image.open(path) as image:
            if image.size != (side, side):
                raise BadValue(
                    f"{path} is {image.width}x{image.height} pixels, this dataset has {side}x{side}.",
                    "resize the images as described by their authors",
                )
            pixels, note = rgb_of(image, str(path))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise broken_file(path) or picture_fault(error, str(path), "replace or delete that file") from None
    except DataCorrupt as error:
        raise broken_file(path) or error from None
    return torch.from_numpy(pixels).permute(2, 0, 1), note


def import_tensors(
    source: Path | str | tuple[Any, Any],
    dataset: Dataset,
    out: Path,
    *,
    split: SourceSplit = "unknown",
    normalised: Normalisation | str | None = None,
    clip: bool = False,
    soft_labels: Any = None,
    soft_label_kind: str | None = None,
    number: int | None = None,
    say: Say = warn_of_doubts,
) -> SetRecipe:
    """Import (images, labels), or a ``.safetensors``, ``.pt``, ``.npz`` or ``.parquet`` file with both.

    Images and labels may also be paths of two files with one tensor each.  ``number``: which set, from 0, of a file
    with several, as dataset condensation saves them.

    ``images``: (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1]; ``labels``: (N,) integers or one-hot rows; in
    any form that :func:`rd3.evaluate` takes and in any row order, equally many of each class.  A class order that the
    file states is obeyed.  ``normalised``: constants that were applied to pixels in [0, 1] and are undone, as such or
    as text (``dataset``, a name such as ``half`` for [-1, 1], or ``MEAN/STD``); ``clip``: clip what is then outside
    [0, 1].  ``say`` receives what was found; by default, doubts are Python warnings.  Writes the set into ``out`` and
    returns its recipe.

    ``soft_labels``: (N, C) floats in fp16, bf16, fp32 or fp64, in the row order of the images, which the set keeps as
    they are; those in the file by default.  ``soft_label_kind``: ``logits`` or ``probabilities``, if neither the file
    states it nor the values show it.
    """
    read = None if isinstance(source, tuple) else _READERS.get(Path(source).suffix)
    if number is not None and (isinstance(source, tuple) or read is not None):
        raise BadValue("Only a .pt or .pth file holds several sets.", "leave out --number (in Python number=)")
    if isinstance(source, tuple):
        images, labels = source
        if isinstance(images, (str, Path)) and isinstance(labels, (str, Path)):
            images, labels = _array_in(Path(images), "images"), _array_in(Path(labels), "labels")
        found = ForeignSet(images, labels)
    elif read is not None:
        found = read(Path(source), dataset.info.num_classes, say)
    else:
        found = read_tensor_file(Path(source), dataset.info.num_classes, say, number)
    if soft_labels is not None:  # a file states the kind of its own soft labels
        found = found._replace(soft_labels=soft_labels, soft_label_kind=None)
    stated = found.soft_label_kind
    if soft_label_kind is not None and stated not in (None, soft_label_kind):
        raise BadValue(f"soft_label_kind is {soft_label_kind!r}, {source} states {stated!r}.", "correct one of them")
    found = found._replace(soft_label_kind=soft_label_kind or stated)
    return _imported(found, dataset, out, split, say, stated_space(normalised, clip, dataset.info.normalisation))


def _array_in(path: Path, what: str) -> Any:
    """The only tensor or array in a file of ``torch.save``, safetensors or ``.npy``."""
    from rd3.inputs.torch_files import read_tensor

    return read_array(path) if path.suffix == ".npy" else read_tensor(path, what)


def _imported(
    given: ForeignSet, dataset: Dataset, out: Path, split: SourceSplit, say: Say, space: Space | None = None
) -> SetRecipe:
    """Check a set, write it into ``out`` and return its recipe; ``space``: the pixel space that the user states."""
    info = dataset.info
    found = check_images_and_labels(info=info, space=space, say=say, **given._asdict())
    rows = _k_major(found.labels, info)
    pixels = found.images[rows].contiguous()
    soft = None if found.soft_labels is None else found.soft_labels.take(rows)
    dtype, digests = str(pixels.dtype).removeprefix("torch."), map(row_digest, pixels.numpy())
    recipe = SetRecipe(
        method=IMPORTED,
        version=1,
        settings={} if soft is None else {"soft_label_kind": soft.kind},
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split=split),
        classes=info.classes,
        resolution=info.resolution,
        ipc=len(rows) // info.num_classes,
        content=content_digest(dtype, tuple(pixels.shape), digests, info.num_classes, soft),
    )
    members = [(row % info.num_classes, row // info.num_classes) for row in range(len(rows))]
    starts = range(0, len(members), _BLOCK_ROWS)
    blocks = [Block(index, tuple(members[start : start + _BLOCK_ROWS])) for index, start in enumerate(starts)]
    writer = SetWriter(out, recipe, info, blocks)
    for block, start in zip(blocks, starts, strict=True):
        part = slice(start, start + _BLOCK_ROWS)  # a view, where the block's rows would copy the pixels
        writer.add(block, pixels[part], soft_labels=None if soft is None else soft.values[part])
    writer.finish()
    return recipe


def _k_major(labels: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """Row order that puts image k of class c at k * C + c; raises unless all classes have equally many images."""
    counts = Counter(labels.tolist())
    per_class = [counts.get(label, 0) for label in range(info.num_classes)]
    usual = Counter(per_class).most_common(1)[0][0]
    odd = [label for label, count in enumerate(per_class) if count != usual or count == 0]
    if odd:
        there = [label for label, count in enumerate(per_class) if count]
        if len(there) == 1:
            message = (
                f"All images are of class {there[0]} ({info.class_ids[there[0]]}); {info.num_classes - 1} have none."
            )
        else:
            of = f"Class {odd[0]} ({info.class_ids[odd[0]]}) has {per_class[odd[0]]} images"
            message = f"{of}, most classes have {usual}." if usual else f"{of}; {per_class.count(0)} classes have none."
        raise BadValue(message, "use equally many images of every class")
    by_class = [(labels == label).nonzero()[:, 0] for label in range(info.num_classes)]
    return torch.stack(by_class, dim=1).flatten()
