"""Write a set block by block, so that an interruption loses at most one block."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rd3 import __version__
from rd3.datasets import DatasetInfo
from rd3.errors import BadValue
from rd3.lazy import torch
from rd3.recipe import SetRecipe
from rd3.soft_labels import SoftLabels
from rd3.store import now, sha256_file, write_atomically
from rd3.synthetic_set.block import Block
from rd3.synthetic_set.manifest import MANIFEST, Manifest, Phase, content_digest, row_digest

BLOCKS = "blocks"


def block_name(index: int) -> str:
    """Relative file name of a block."""
    return f"{BLOCKS}/{index:05d}.safetensors"


class SetWriter:
    """Writes the blocks of one set into a folder and then its manifest.

    The header of a block's file holds its recipe key, its time and its content digest, so that resuming needs no other
    record and phase times are not lost.  A set whose recipe has a ``soft_label_kind`` has soft labels in every block.
    """

    def __init__(self, folder: Path, recipe: SetRecipe, info: DatasetInfo, blocks: Sequence[Block]):
        self.folder, self.recipe, self.info = Path(folder), recipe, info
        self.blocks = {block.index: block for block in blocks}
        members = [member for block in blocks for member in block.members]
        wanted = {(label, k) for label in range(info.num_classes) for k in range(recipe.ipc)}
        if len(members) != len(wanted) or set(members) != wanted or len(self.blocks) != len(blocks):
            raise BadValue(
                f"Method {recipe.method}: its blocks lack or repeat a (label, k) of {info.num_classes} classes x "
                f"{recipe.ipc} images.",
                f"run `rd3 method test {recipe.method}`",
            )
        self._headers: dict[int, dict[str, Any]] = {}

    def done(self) -> set[int]:
        """Indices of complete blocks of this recipe on disk; other blocks are deleted."""
        for index, block in self.blocks.items():
            path = self.folder / block_name(index)
            if index in self._headers or not path.exists():
                continue
            headers = self._read(path, block)
            if headers is None:
                path.unlink()
            else:
                self._headers[index] = headers
        return set(self._headers)

    def _read(self, path: Path, block: Block) -> dict[str, Any] | None:
        try:
            with safe_open(path, framework="pt") as opened:
                headers = json.loads((opened.metadata() or {}).get("rd3", "{}"))
                if headers.get("key") != self.recipe.key:
                    return None
                rows, images = opened.get_tensor("rows").tolist(), opened.get_tensor("images")
        except (SafetensorError, OSError, ValueError):
            return None
        if rows != block.rows(self.info.num_classes):
            return None
        return headers if [row_digest(image).hex() for image in images.numpy()] == headers["digests"] else None

    def copy_blocks(self, larger: Path, its_blocks: Sequence[Block]) -> set[int]:
        """Copy missing blocks from a larger set, whose blocks begin with them; returns all finished indices.

        The full time of a block is kept, as images that are not copied took no extra time or were generated
        together with the others.  Generated sets have no soft labels, so none are copied.
        """
        theirs = {block.index: block for block in its_blocks}
        for index in set(self.blocks) - self.done():
            block, count = self.blocks[index], len(self.blocks[index].members)
            if index not in theirs or theirs[index].members[:count] != block.members:
                continue
            with safe_open(larger / block_name(index), framework="pt") as opened:
                headers = json.loads(opened.metadata()["rd3"])
                images = opened.get_slice("images")[:count]
            self.add(block, images, phases=headers["phases"], peak_mib=headers["peak_mib"])
        return self.done()

    def add(
        self,
        block: Block,
        images: torch.Tensor,
        *,
        soft_labels: torch.Tensor | None = None,
        phases: Mapping[str, Mapping[str, float]] | None = None,
        peak_mib: float | None = None,
    ) -> None:
        """Write one block; ``images``: (n, 3, H, W) uint8, or float32 in [0, 1], in the order of ``block.members``.

        ``soft_labels``: (n, C) of the same images, of one type in all blocks, for a set with soft labels.
        """
        from safetensors.torch import save

        images = images.detach().cpu().contiguous()
        self._check(block, images, soft_labels)
        headers = {
            "key": self.recipe.key,
            "dtype": str(images.dtype).removeprefix("torch."),
            "digests": [row_digest(image).hex() for image in images.numpy()],
            "phases": {name: dict(spent) for name, spent in (phases or {}).items()},
            "peak_mib": peak_mib,
        }
        tensors = {
            "images": images,
            "labels": torch.tensor(block.labels, dtype=torch.int64),
            "rows": torch.tensor(block.rows(self.info.num_classes), dtype=torch.int64),
        }
        if soft_labels is not None:
            tensors["soft_labels"] = soft_labels.detach().cpu().contiguous()
        write_atomically(self.folder / block_name(block.index), save(tensors, {"rd3": json.dumps(headers)}))
        self._headers[block.index] = headers

    def _check(self, block: Block, images: torch.Tensor, soft_labels: torch.Tensor | None) -> None:
        """Raise for images of another shape, type or range, and for soft labels other than the recipe states."""
        where, side = f"Method {self.recipe.method}, block {block.index}", self.recipe.resolution
        shape = (len(block.members), 3, side, side)
        if tuple(images.shape) != shape:
            raise BadValue(f"{where}: images have shape {tuple(images.shape)}, expected {shape}.")
        if images.dtype not in (torch.uint8, torch.float32):
            raise BadValue(f"{where}: images are {images.dtype}, expected uint8, or float32 in [0, 1].")
        if images.dtype == torch.float32:
            low, high = images.aminmax()
            if not (low >= 0 and high <= 1):
                raise BadValue(f"{where}: float images range from {low:.3g} to {high:.3g}, expected [0, 1].")
        found, kind = None if soft_labels is None else tuple(soft_labels.shape), self.recipe.soft_label_kind
        expected = None if kind is None else (len(block.members), self.info.num_classes)
        if found != expected:
            raise BadValue(f"{where}: soft labels have shape {found}, expected {expected}, as the set's are {kind}.")

    def finish(
        self, *, device: str | None = None, threads: int | None = None, shared_machine: bool | None = None
    ) -> Manifest:
        """Write the manifest; raises :class:`BadValue` unless every block is finished.

        ``shared_machine``: whether other work ran on the machine at the same time; None: unknown.
        """
        missing = sorted(set(self.blocks) - self.done())
        if missing:
            raise BadValue(f"Set {self.recipe.key[:8]}: {len(missing)} blocks are missing, the first is {missing[0]}.")
        headers = [self._headers[index] for index in sorted(self.blocks)]
        dtypes = sorted({each["dtype"] for each in headers})
        if len(dtypes) > 1:
            raise BadValue(f"Method {self.recipe.method} generated blocks of different types: {', '.join(dtypes)}.")
        files = {block_name(index): sha256_file(self.folder / block_name(index)) for index in sorted(self.blocks)}
        for path in (self.folder / BLOCKS).iterdir():
            if f"{BLOCKS}/{path.name}" not in files:  # left by an interrupted write or by another recipe
                path.unlink()
        phases = _summed(headers)
        peaks = [each["peak_mib"] for each in headers if each["peak_mib"] is not None]
        count, side = self.recipe.ipc * self.info.num_classes, self.recipe.resolution
        shape = (count, 3, side, side)
        manifest = Manifest(
            recipe=self.recipe.model_dump(mode="json"),
            key=self.recipe.key,
            method=self.recipe.method,
            dataset=self.info.name,
            class_ids=self.info.class_ids,
            classes=self.info.classes,
            ipc=self.recipe.ipc,
            resolution=side,
            dtype=dtypes[0],
            count=count,
            files=files,
            content=content_digest(dtypes[0], shape, self._digests(), self.info.num_classes, self._soft_labels()),
            phases=phases,
            generation_wall_s=sum(phase.wall_s for phase in phases.values()),
            generation_process_s=sum(phase.process_s for phase in phases.values()),
            peak_mib=max(peaks, default=None),
            threads=threads,
            device=device,
            shared_machine=shared_machine,
            code_version=__version__,
            made_at=now(),
        )
        write_atomically(self.folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1))
        return manifest

    def _digests(self) -> list[bytes]:
        """The digests of all images, in row order."""
        by_row: dict[int, str] = {}
        for index, block in self.blocks.items():
            by_row |= zip(block.rows(self.info.num_classes), self._headers[index]["digests"], strict=True)
        return [bytes.fromhex(by_row[row]) for row in sorted(by_row)]

    def _soft_labels(self) -> SoftLabels | None:
        """The soft labels of all blocks, in row order."""
        kind, parts, rows = self.recipe.soft_label_kind, [], []
        if kind is None:
            return None
        for index, block in self.blocks.items():
            with safe_open(self.folder / block_name(index), framework="pt") as opened:
                parts.append(opened.get_tensor("soft_labels"))
            rows += block.rows(self.info.num_classes)
        return SoftLabels(torch.cat(parts), kind).take(torch.tensor(rows).argsort())


def _summed(headers: list[dict[str, Any]]) -> dict[str, Phase]:
    """Time of each phase, summed over the blocks."""
    total: dict[str, Phase] = {}
    for each in headers:
        for name, spent in each["phases"].items():
            known = total.get(name, Phase(wall_s=0.0, process_s=0.0))
            total[name] = Phase(wall_s=known.wall_s + spent["wall_s"], process_s=known.process_s + spent["process_s"])
    return total
