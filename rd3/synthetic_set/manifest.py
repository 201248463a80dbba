"""The manifest of a synthetic set and its content digest; loads neither torch nor numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from rd3.errors import DataCorrupt, DataMissing
from rd3.recipe import SetRecipe, recipe_of_kind
from rd3.values import Frozen, canonical, first_mistake

if TYPE_CHECKING:
    import numpy as np

    from rd3.soft_labels import SoftLabelKind, SoftLabels

FORMAT = 1
MANIFEST = "manifest.json"
DType = Literal["uint8", "float32"]


class Phase(Frozen):
    """Time of one named phase of generation, summed over the blocks."""

    wall_s: float
    process_s: float
    """CPU time of all threads of the process, in seconds."""


class Manifest(Frozen):
    """Description of a set: its recipe, its files, and the time and memory of its generation."""

    format: int = FORMAT
    recipe: dict[str, Any]
    key: str
    method: str
    dataset: str
    class_ids: tuple[str, ...]
    classes: str
    """Hash of the class list, in order."""
    ipc: int
    resolution: int
    dtype: DType
    count: int
    """Number of images: ipc times the number of classes."""
    files: dict[str, str]
    """File name (relative, with /) to sha256."""
    content: str
    """Digest of type, shape, pixels and labels in row order, and of soft labels; independent of blocks, times and
    paths."""
    phases: dict[str, Phase] = {}
    generation_wall_s: float = 0.0
    generation_process_s: float = 0.0
    peak_mib: float | None = None
    """Peak memory during generation in MiB: of the process on a CPU, of torch's allocator on a GPU."""
    threads: int | None = None
    device: str | None = None
    shared_machine: bool | None = None
    """Whether other work ran at the same time, which affects ``wall_s``; None: unknown."""
    code_version: str
    made_at: str

    def recipe_of_set(self) -> SetRecipe:
        """The recipe of this set."""
        return recipe_of_kind(self.recipe, SetRecipe)

    @property
    def soft_label_kind(self) -> SoftLabelKind | None:
        """As :attr:`rd3.recipe.SetRecipe.soft_label_kind`, from a recipe of any format."""
        imported = self.recipe.get("content") is not None
        kind: SoftLabelKind | None = self.recipe.get("settings", {}).get("soft_label_kind") if imported else None
        return kind

    @property
    def short(self) -> str:
        """Short readable name."""
        return f"synthetic set {self.key[:8]}"


def row_digest(pixels: np.ndarray) -> bytes:
    """sha256 of one image's bytes; ``pixels`` is a contiguous array."""
    return hashlib.sha256(pixels.data).digest()


def content_digest(
    dtype: str, shape: tuple[int, ...], rows: Iterable[bytes], num_classes: int, soft_labels: SoftLabels | None = None
) -> str:
    """Digest of the pixels, labels and soft labels of a set.

    ``shape`` is (N, 3, H, W).  ``rows`` are the digests of its images (:func:`row_digest`), so that the pixels need not
    be in memory at once; the label of row r is ``r % num_classes``.
    """
    whole = hashlib.sha256(canonical({"dtype": dtype, "shape": list(shape)}).encode())
    for row, digest in enumerate(rows):
        whole.update(digest)
        whole.update((row % num_classes).to_bytes(8, "little"))
    if soft_labels is not None:
        whole.update(soft_labels.digest().encode())
    return whole.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest in a set's folder, without checking the files."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataMissing(
            f"{folder} holds no {MANIFEST}, so the synthetic set is not complete.", "generate it again, which resumes"
        )
    raw = path.read_bytes()
    _check_format(raw, path)
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        fix = "delete the folder and generate or import the set again"
        raise DataCorrupt(f"{path}: {first_mistake(error)}.", fix) from None


def _check_format(raw: bytes, path: Path) -> None:
    """Raise for a later format, before its fields are checked, as this version may not know all of them."""
    try:
        stated = json.loads(raw)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # what else is wrong is said by whoever checks the fields
    if isinstance(stated, int) and stated > FORMAT:
        raise DataCorrupt(f"{path} has format {stated}, this version reads up to {FORMAT}.", "upgrade rd3")
