"""The manifest of a synthetic set, and the digest of its content.  Loads neither torch nor numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rd3.errors import DataCorrupt, DataMissing
from rd3.recipe import SetRecipe, recipe_of_kind
from rd3.values import canonical

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
DType = Literal["uint8", "float32"]


class Phase(BaseModel):
    """Time spent in one named part of a set's making, summed over its blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: float
    process_s: float
    """CPU seconds of all threads of the process."""


class Manifest(BaseModel):
    """What a set is, what it was made from, and what making it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """Images: ipc times the number of classes."""
    files: dict[str, str]
    """File name (relative, with /) to sha256."""
    content: str
    """Digest of type, shape, pixels and labels in row order; does not depend on blocks, times or paths."""
    phases: dict[str, Phase] = {}
    generation_wall_s: float = 0.0
    generation_process_s: float = 0.0
    peak_mib: float | None = None
    """Peak memory while it was made: of the process on a CPU, of torch's allocator on a GPU."""
    threads: int | None = None
    device: str | None = None
    shared_machine: bool | None = None
    """Whether other work ran beside it, so that ``wall_s`` is not clean; None: nobody said."""
    code_version: str
    made_at: str

    def recipe_of_set(self) -> SetRecipe:
        """The recipe that this set was made by."""
        return recipe_of_kind(self.recipe, SetRecipe)

    @property
    def short(self) -> str:
        """What people call it."""
        return f"synthetic set {self.key[:8]}"


def row_digest(pixels: np.ndarray) -> bytes:
    """sha256 of one image's bytes; ``pixels`` is a contiguous array."""
    return hashlib.sha256(pixels.data).digest()


def content_digest(dtype: str, shape: tuple[int, ...], rows: Iterable[tuple[bytes, int]]) -> str:
    """Digest of a set's content from its rows' digests and labels, in row order.

    ``shape`` is (N, 3, H, W).  Made of row digests so that neither writing nor checking holds all pixels twice.
    """
    whole = hashlib.sha256(canonical({"dtype": dtype, "shape": list(shape)}).encode())
    for digest, label in rows:
        whole.update(digest)
        whole.update(int(label).to_bytes(8, "little"))
    return whole.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set's folder, its own form checked and nothing else."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataMissing(
            f"{folder} holds no {MANIFEST}, so it is not a finished synthetic set.", "make it again, which resumes it"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataCorrupt(
            f"{path}: {place}: {first['msg']}.", "delete the folder and make or import the set again"
        ) from None
    if manifest.format > FORMAT:
        raise DataCorrupt(f"{path} has format {manifest.format}, this version reads up to {FORMAT}.", "upgrade rd3")
    return manifest
