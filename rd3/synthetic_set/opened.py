"""Opening a set through checks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.synthetic_set.manifest import Manifest, content_digest, read_manifest, row_digest

if TYPE_CHECKING:
    import torch

_REMEDY = "delete the folder and make or import the set again"


@dataclass(frozen=True)
class SyntheticSet:
    """A whole, checked set in memory.

    ``images``: (N, 3, H, W) uint8, or float32 in [0, 1]; ``labels``: (N,) int64; both in row order.
    """

    manifest: Manifest
    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def open(
        cls, folder: Path | str, *, classes: str | None = None, class_ids: Sequence[str] | None = None
    ) -> SyntheticSet:
        """Read and check a set's folder: manifest, sha256 of every file, class list, shapes, labels, content.

        ``classes`` is the hash of the class list that the caller works with; ``class_ids`` is that list, with which
        the error can name the first class that differs.
        """
        import torch

        folder = Path(folder)
        manifest = read_manifest(folder)
        _check_classes(manifest, classes, class_ids)
        side, count = manifest.resolution, manifest.count
        num_classes = len(manifest.class_ids)
        if count != manifest.ipc * num_classes:
            raise DataCorrupt(
                f"{manifest.short} says {count} images, but IPC {manifest.ipc} x {num_classes} classes.", _REMEDY
            )
        images = torch.empty((count, 3, side, side), dtype=getattr(torch, manifest.dtype))
        labels = torch.full((count,), -1, dtype=torch.int64)
        for name, sha256 in manifest.files.items():
            block_images, block_labels, rows = _read_block(folder, name, sha256, manifest)
            images[rows], labels[rows] = block_images, block_labels
        wrong = (labels != torch.arange(count) % num_classes).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise DataCorrupt(
                f"{manifest.short}: row {row} has label {int(labels[row])}, expected {row % num_classes}.", _REMEDY
            )
        rows_told = zip((row_digest(image) for image in images.numpy()), labels.tolist(), strict=True)
        content = content_digest(manifest.dtype, tuple(images.shape), rows_told)
        if content != manifest.content:
            raise DataCorrupt(
                f"{manifest.short}: its images have digest {content[:12]}, its manifest says {manifest.content[:12]}.",
                _REMEDY,
            )
        return cls(manifest, images, labels)

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_ids)

    def prefix(self, ipc: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first ``ipc`` images of every class (views, in row order)."""
        if not 1 <= ipc <= self.manifest.ipc:
            raise BadValue(f"{self.manifest.short} has 1 to {self.manifest.ipc} images a class, not {ipc}.")
        rows = ipc * self.num_classes
        return self.images[:rows], self.labels[:rows]

    def export_png(self, folder: Path) -> Path:
        """A folder of PNG files, one folder a class: :func:`rd3.synthetic_set.export_png`."""
        from rd3.synthetic_set.export import export_png

        return export_png(self, folder)

    def export_parquet(self, path: Path) -> Path:
        """A Parquet file that ``datasets`` opens: :func:`rd3.synthetic_set.export_parquet`."""
        from rd3.synthetic_set.export import export_parquet

        return export_parquet(self, path)


def _check_classes(manifest: Manifest, classes: str | None, class_ids: Sequence[str] | None) -> None:
    from rd3.datasets import class_list_hash

    if class_list_hash(manifest.class_ids) != manifest.classes:
        raise DataCorrupt(f"{manifest.short}: its class list does not have the hash that its manifest says.", _REMEDY)
    if classes is None and class_ids is not None:
        classes = class_list_hash(class_ids)
    if classes is None or classes == manifest.classes:
        return
    if class_ids is None:
        what = f"{manifest.short} has class list {manifest.classes[:12]}, expected {classes[:12]}."
    elif len(class_ids) != len(manifest.class_ids):
        what = f"{manifest.short} has {len(manifest.class_ids)} classes, expected {len(class_ids)}."
    else:
        pairs = zip(manifest.class_ids, class_ids, strict=True)
        different = [(label, got, expected) for label, (got, expected) in enumerate(pairs) if got != expected]
        label, got, expected = different[0]
        what = (
            f"{manifest.short} lists class {label} as {got}, expected {expected} (first of {len(different)} "
            "differences)."
        )
    raise ClassOrderError(what, "use a set of this dataset, or import the images again from folders named by class")


def _read_block(
    folder: Path, name: str, sha256: str, manifest: Manifest
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / name
    if not path.is_file():
        raise DataMissing(f"{manifest.short} lacks its file {name}.", _REMEDY)
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataCorrupt(
            f"{manifest.short}: file {name} has sha256 {found[:12]}, its manifest says {sha256[:12]}.", _REMEDY
        )
    try:
        tensors = load(raw)
        images, labels, rows = tensors["images"], tensors["labels"], tensors["rows"]
    except (SafetensorError, KeyError):
        raise DataCorrupt(f"{manifest.short}: file {name} is not a block of images.", _REMEDY) from None
    expected = (len(rows), 3, manifest.resolution, manifest.resolution)
    dtype = str(images.dtype).removeprefix("torch.")
    if tuple(images.shape) != expected or dtype != manifest.dtype or len(labels) != len(rows):
        raise DataCorrupt(
            f"{manifest.short}: file {name} holds {tuple(images.shape)} {dtype}, expected {expected} {manifest.dtype}.",
            _REMEDY,
        )
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= manifest.count):
        raise DataCorrupt(f"{manifest.short}: file {name} names rows outside 0..{manifest.count - 1}.", _REMEDY)
    return images, labels, rows
