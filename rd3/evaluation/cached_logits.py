"""Teacher logits cached on disk: the logits of each teacher on each view, read by later evaluations of equal views.

Nothing that is read differs by a bit from what would be computed: logits are kept in the type in which teachers compute
them, and the name of a file is a digest of the views and of all that decides bits (files of the set and the teachers,
device, versions, threads, precision, number of images labelled at once).

A file is a header (two lines and their sha256) and one record for each chunk of views, in order: the logits of every
teacher, then the sha256 of the number of the chunk and these bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import torch

from rd3 import __version__
from rd3.evaluation.budget import image_steps, steps
from rd3.evaluation.logits_folder import VIEWS_DIGITS, LogitsFolder
from rd3.evaluation.packing import Views
from rd3.hardware import processor
from rd3.recipe import EvaluationRecipe
from rd3.tensor_bytes import value_bytes
from rd3.values import digest

MAGIC = b"RD3 logits 1\n"
DIGEST_BYTES = 32
_HEADER_LIMIT = 65_536
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class CachedLogits:
    """Cached logits of one evaluation."""

    folder: LogitsFolder
    content: str
    """Digest of the files of the set and the teachers, whose bits their recipes' keys do not determine."""
    wanted: bool
    """Whether logits that are not cached yet are written, for other evaluations."""
    read: bool = False
    """Whether logits were read, so that the time of the evaluation says little about others."""


class _Damaged(Exception):
    """A file is not what was written."""


class _Logits(NamedTuple):
    """Type and number of classes of a teacher's logits."""

    dtype: str
    classes: int

    @property
    def row_bytes(self) -> int:
        return self.classes * _TYPES[self.dtype].itemsize


class LogitsStream:
    """The logits of one training, chunk by chunk: read if a complete file is there, else computed and written.

    A damaged chunk is computed, as are all that follow it; its file is deleted with a warning.  If logits cannot be
    written, the training goes on without, with a warning unless the disk budget is the reason.
    """

    def __init__(
        self,
        cached: CachedLogits,
        recipe: EvaluationRecipe,
        images: int,
        device: torch.device,
        precision: str,
        chunk: int,
    ):
        """``images``: number of images in the set; ``chunk``: number of batches that are labelled at once."""
        self._cached, self._device = cached, device
        self._rows = image_steps(recipe.protocol, images)
        self._chunks = math.ceil(steps(recipe.protocol, images) / chunk)
        rest = digest([cached.content, precision, chunk, bits_of(device)])
        self._name = f"{Views.of(recipe).key[:VIEWS_DIGITS]}-{rest[:VIEWS_DIGITS]}"
        self._next = 0  # number of the next chunk
        self._layout: list[_Logits] = []
        self._reader: BinaryIO | None = None
        self._writer: BinaryIO | None = None
        try:
            self._reader = cached.folder.open(self._name)
            if self._reader is not None:
                self._layout = self._read_header(self._reader)
        except _Damaged as reason:
            self._discard(str(reason))
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")

    @property
    def reading(self) -> bool:
        """Whether the next logits are read."""
        return self._reader is not None

    def logits(self, rows: int, compute: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """(``rows``, C) logits of each teacher on the next chunk, in the type in which ``compute`` returns them."""
        found = self._read(rows) if self._reader is not None else None
        if found is None:
            found = compute()
            self._write(found)
        self._next += 1
        return found

    def close(self) -> None:
        """End reading, and delete a file that was not written to its end."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                self._cached.folder.abandon(self._name, writer)
            except OSError as error:
                self._warn(f"cannot be deleted ({error.strerror})")

    def _read(self, rows: int) -> list[torch.Tensor] | None:
        assert self._reader is not None
        size = rows * sum(each.row_bytes for each in self._layout)
        try:
            chunk = bytearray(self._reader.read(size))
            if len(chunk) < size or self._reader.read(DIGEST_BYTES) != _seal(self._next, chunk):
                raise _Damaged(f"chunk {self._next + 1} of {self._chunks} is damaged")
        except (_Damaged, OSError) as reason:
            self._discard(str(reason))
            return None
        self._cached.read = True
        found, start = [], 0
        for each in self._layout:
            values = torch.frombuffer(chunk, dtype=_TYPES[each.dtype], count=rows * each.classes, offset=start)
            found.append(values.view(rows, each.classes).to(self._device))
            start += rows * each.row_bytes
        return found

    def _read_header(self, reader: BinaryIO) -> list[_Logits]:
        magic, line = reader.readline(_HEADER_LIMIT), reader.readline(_HEADER_LIMIT)
        if magic != MAGIC or reader.read(DIGEST_BYTES) != hashlib.sha256(magic + line).digest():
            raise _Damaged("its header is damaged")
        layout = [_Logits(**each) for each in json.loads(line)["teachers"]]
        if os.fstat(reader.fileno()).st_size != self._file_bytes(layout):
            raise _Damaged("its size is wrong")
        return layout

    def _file_bytes(self, layout: Sequence[_Logits]) -> int:
        logits = self._rows * sum(each.row_bytes for each in layout)
        return len(_header(layout, self._rows)) + logits + self._chunks * DIGEST_BYTES

    def _write(self, logits: Sequence[torch.Tensor]) -> None:
        try:
            if self._next == 0 and self._cached.wanted:
                self._begin(logits)
            if self._writer is not None:
                chunk = b"".join(map(value_bytes, logits))
                self._writer.write(chunk + _seal(self._next, chunk))
                if self._next + 1 == self._chunks:
                    self._cached.folder.complete(self._name, self._writer)
                    self._writer = None
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror})")
            self.close()

    def _begin(self, logits: Sequence[torch.Tensor]) -> None:
        layout = [_Logits(str(each.dtype).removeprefix("torch."), each.shape[1]) for each in logits]
        if all(each.dtype in _TYPES for each in layout):
            self._writer = self._cached.folder.begin(self._name, self._file_bytes(layout))
        if self._writer is not None:
            self._writer.write(_header(layout, self._rows))

    def _discard(self, reason: str) -> None:
        """Stop reading, and delete the file."""
        self._warn(f"are computed again: {reason}")
        self.close()
        try:
            self._cached.folder.delete(self._name)
        except OSError as error:
            self._warn(f"cannot be deleted ({error.strerror})")

    def _warn(self, what: str) -> None:
        warnings.warn(f"Cached teacher logits {self._cached.folder.path / self._name} {what}.", stacklevel=2)


def _header(layout: Sequence[_Logits], rows: int) -> bytes:
    lines = MAGIC + json.dumps({"rows": rows, "teachers": [each._asdict() for each in layout]}).encode() + b"\n"
    return lines + hashlib.sha256(lines).digest()


def _seal(number: int, chunk: bytes | bytearray) -> bytes:
    """sha256 of a chunk's number and bytes, so that chunks cannot be exchanged."""
    return hashlib.sha256(number.to_bytes(8, "little") + chunk).digest()


def bits_of(device: torch.device) -> dict[str, Any]:
    """Everything on this machine that may decide bits of a network's outputs, beside weights, pixels and batches."""
    found: dict[str, Any] = {"rd3": __version__, "torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        return found | {"name": torch.cuda.get_device_name(device), "cudnn": torch.backends.cudnn.version()}
    return found | {
        "name": processor().name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        # Limits the instructions of oneDNN, which computes convolutions.
        "limit": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "threads": torch.get_num_threads(),
        "denormals": float(torch.tensor(1e-39) * 0.5) > 0,
    }
