"""Open a set and check it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from rd3.datasets import class_list_hash
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.lazy import torch
from rd3.soft_labels import SoftLabels
from rd3.synthetic_set.manifest import Manifest, content_digest, read_manifest, row_digest

_REMEDY = "delete the folder and generate or import the set again"


@dataclass(frozen=True)
class SetOnDisk:
    """A complete, checked set whose images stay on disk; checking and reading load one block at a time."""

    folder: Path
    manifest: Manifest
    places: dict[int, tuple[str, int]]
    """Block file and position in it, by row."""

    @classmethod
    def open(
        cls, folder: Path | str, *, classes: str | None = None, class_ids: Sequence[str] | None = None
    ) -> SetOnDisk:
        """Open and check a set's folder, as in :meth:`SyntheticSet.open`."""
        folder, manifest = Path(folder), _checked_manifest(Path(folder), classes, class_ids)
        places: dict[int, tuple[str, int]] = {}

        def note_places(block: _ReadBlock) -> None:
            places.update((row, (block.name, place)) for place, row in enumerate(block.rows.tolist()))

        _check_blocks(folder, manifest, note_places)
        return cls(folder, manifest, places)

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_ids)

    def rows(self, rows: Sequence[int]) -> torch.Tensor:
        """(len(rows), 3, H, W) images, uint8 or float32 in [0, 1], in the given order."""
        side = self.manifest.resolution
        images = torch.empty((len(rows), 3, side, side), dtype=getattr(torch, self.manifest.dtype))
        wanted: dict[str, list[tuple[int, int]]] = {}
        for target, row in enumerate(rows):
            name, place = self.places[row]
            wanted.setdefault(name, []).append((target, place))
        for name, pairs in wanted.items():
            with safe_open(self.folder / name, framework="pt") as block:
                stored = block.get_slice("images")
                for target, place in pairs:
                    images[target] = stored[place]
        return images


@dataclass(frozen=True)
class SyntheticSet:
    """A complete, checked set in memory.

    ``images``: (N, 3, H, W) uint8, or float32 in [0, 1]; ``labels``: (N,) int64; ``soft_labels``: those that the set
    comes with, if any; all in row order.
    """

    manifest: Manifest
    images: torch.Tensor
    labels: torch.Tensor
    soft_labels: SoftLabels | None = None

    @classmethod
    def open(
        cls, folder: Path | str, *, classes: str | None = None, class_ids: Sequence[str] | None = None
    ) -> SyntheticSet:
        """Read and check a set's folder: manifest, sha256 of every file, class list, shapes, labels, content.

        ``classes`` is the hash of the caller's class list; ``class_ids`` is that list, used to report the first class
        that differs.  Raises :class:`DataMissing`, :class:`DataCorrupt` or :class:`ClassOrderError`.
        """
        manifest = _checked_manifest(Path(folder), classes, class_ids)
        side, count = manifest.resolution, manifest.count
        images = torch.empty((count, 3, side, side), dtype=getattr(torch, manifest.dtype))

        def keep(block: _ReadBlock) -> None:
            images[block.rows] = block.images

        soft_labels = _check_blocks(Path(folder), manifest, keep)
        return cls(manifest, images, torch.arange(count) % len(manifest.class_ids), soft_labels)

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_ids)

    def prefix(self, ipc: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first ``ipc`` images of every class (views, in row order)."""
        if not 1 <= ipc <= self.manifest.ipc:
            raise BadValue(f"{self.manifest.short} has {self.manifest.ipc} images per class, got IPC {ipc}.")
        rows = ipc * self.num_classes
        return self.images[:rows], self.labels[:rows]


def _corrupt(manifest: Manifest, fact: str) -> DataCorrupt:
    return DataCorrupt(f"{manifest.short}: {fact}.", _REMEDY)


def _checked_manifest(folder: Path, classes: str | None, class_ids: Sequence[str] | None) -> Manifest:
    manifest = read_manifest(folder)
    _check_classes(manifest, classes, class_ids)
    if manifest.count != manifest.ipc * len(manifest.class_ids):
        raise DataCorrupt(
            f"{manifest.short} has {manifest.count} images, but IPC {manifest.ipc} x {len(manifest.class_ids)} "
            "classes.",
            _REMEDY,
        )
    return manifest


class _ReadBlock(NamedTuple):
    """The content of a block's file."""

    name: str
    images: torch.Tensor
    rows: torch.Tensor
    soft_labels: torch.Tensor | None


def _check_blocks(folder: Path, manifest: Manifest, use: Callable[[_ReadBlock], None]) -> SoftLabels | None:
    """Read the blocks one by one, pass each to ``use``, and return the soft labels of all, in row order, if any.

    Raises at an invalid block, or at the end if the set is invalid.
    """
    digests: dict[int, bytes] = {}
    rows, soft = [], []
    for name, sha256 in manifest.files.items():
        block = _read_block(folder, name, sha256, manifest)
        digests |= zip(block.rows.tolist(), map(row_digest, block.images.numpy()), strict=True)
        rows.append(block.rows)
        soft.append(block.soft_labels)
        use(block)
    if len(digests) != manifest.count:
        missing = next(row for row in range(manifest.count) if row not in digests)
        raise _corrupt(manifest, f"row {missing} is missing from all files")
    soft_labels = None
    if manifest.soft_label_kind is not None:
        parts = [part for part in soft if part is not None]
        if len(parts) < len(soft):
            raise _corrupt(manifest, "a block lacks its soft labels")
        soft_labels = SoftLabels(torch.cat(parts), manifest.soft_label_kind).take(torch.cat(rows).argsort())
    shape = (manifest.count, 3, manifest.resolution, manifest.resolution)
    in_order = (digests[row] for row in range(manifest.count))
    content = content_digest(manifest.dtype, shape, in_order, len(manifest.class_ids), soft_labels)
    if content != manifest.content:
        raise _corrupt(manifest, f"its images have digest {content[:12]}, its manifest says {manifest.content[:12]}")
    return soft_labels


def _check_classes(manifest: Manifest, classes: str | None, class_ids: Sequence[str] | None) -> None:
    if class_list_hash(manifest.class_ids) != manifest.classes:
        raise _corrupt(manifest, "its class list does not match the hash in its manifest")
    if classes is None and class_ids is not None:
        classes = class_list_hash(class_ids)
    if classes is None or classes == manifest.classes:
        return
    if class_ids is None:
        what = f"has class list {manifest.classes[:12]}, expected {classes[:12]}"
    elif len(class_ids) != len(manifest.class_ids):
        what = f"has {len(manifest.class_ids)} classes, expected {len(class_ids)}"
    else:
        pairs = enumerate(zip(manifest.class_ids, class_ids, strict=True))
        different = [(label, got, expected) for label, (got, expected) in pairs if got != expected]
        label, got, expected = different[0]
        what = f"lists class {label} as {got}, expected {expected} (first of {len(different)} differences)"
    fix = "use a set of this dataset, or import the images again from folders named by class"
    raise ClassOrderError(f"{manifest.short} {what}.", fix)


def _read_block(folder: Path, name: str, sha256: str, manifest: Manifest) -> _ReadBlock:
    from safetensors.torch import load

    path = folder / name
    if not path.is_file():
        raise DataMissing(f"{manifest.short} lacks its file {name}.", _REMEDY)
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise _corrupt(manifest, f"file {name} has sha256 {found[:12]}, its manifest says {sha256[:12]}")
    try:
        tensors = load(raw)
        images, labels, rows = tensors["images"], tensors["labels"], tensors["rows"]
    except (SafetensorError, KeyError):
        raise _corrupt(manifest, f"file {name} is not a block of images") from None
    expected = (len(rows), 3, manifest.resolution, manifest.resolution)
    dtype = str(images.dtype).removeprefix("torch.")
    if tuple(images.shape) != expected or dtype != manifest.dtype or len(labels) != len(rows):
        got = f"{tuple(images.shape)} {dtype}"
        raise _corrupt(manifest, f"file {name} holds {got}, expected {expected} {manifest.dtype}")
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= manifest.count):
        raise _corrupt(manifest, f"file {name} has rows outside 0..{manifest.count - 1}")
    classes, soft_labels = len(manifest.class_ids), tensors.get("soft_labels")
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        if label != row % classes:
            raise _corrupt(manifest, f"row {row} has label {label}, expected {row % classes}")
    if soft_labels is not None and tuple(soft_labels.shape) != (len(rows), classes):
        shape = tuple(soft_labels.shape)
        raise _corrupt(manifest, f"file {name} has soft labels of shape {shape}, expected {(len(rows), classes)}")
    return _ReadBlock(name, images, rows, soft_labels)
