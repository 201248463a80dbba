"""Files derived from datasets and kept under ``<home>/data``: written atomically, memory-mapped when read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from rd3.errors import DataCorrupt, StoreError, is_disk_full
from rd3.lazy import torch
from rd3.locks import exclusive

CHUNK_BYTES = 16 * 2**20
Content = TypeVar("Content")


def short_hash(lines: Iterable[str]) -> str:
    """First 32 hexadecimal digits of the sha256 of some lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def cache_file(home: Path, name: str, stamp: Sequence[str], suffix: str = ".safetensors") -> Path:
    """Path of what is derived from source files with this stamp (names, sizes, times)."""
    return home / "data" / f"{name}-{short_hash(stamp)[:16]}{suffix}"


def content_hash(arrays: Sequence[np.ndarray], lines: Sequence[str]) -> str:
    """Hash (32 hexadecimal digits) of the bytes, types and shapes of arrays and of some lines."""
    # A hash of the hashes of 16 MiB chunks, so that two cores can share the work.
    chunks = [memoryview(b"\n".join(line.encode() for line in lines))]
    for array in arrays:
        chunks.append(memoryview(f"{array.dtype.str}{array.shape}".encode()))
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        chunks += [flat[start : start + CHUNK_BYTES].data for start in range(0, len(flat), CHUNK_BYTES)]
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(lambda chunk: hashlib.sha256(chunk).digest(), chunks))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Inside ``with``, no other process of this machine writes ``path``; waits until none does."""
    with contextlib.suppress(OSError):  # writing says why
        path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock")):
        yield


def read_or_write(path: Path, read: Callable[[], Content | None], write: Callable[[], None]) -> Content:
    """What ``read`` returns; where that is None, ``write`` makes the file ``path`` first, in one process at a time."""
    if (content := read()) is None:
        with one_writer(path):
            if (content := read()) is None:
                write()
                content = read()
    if content is None:
        raise DataCorrupt(f"{path} cannot be read back after writing.", "check the disk of RD3's home folder")
    return content


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, renamed to it if the block succeeds and removed if it fails."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        first = "free space there" if is_disk_full(error) else "make that folder writable"
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}.", f"{first}, or choose another home folder for RD3"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, str]) -> None:
    """Write a safetensors file with string metadata atomically."""
    from safetensors.numpy import save_file

    with replacing(path) as part:
        try:
            save_file(arrays, part, metadata=meta)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_arrays(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Memory-mapped tensors of the file and its metadata; None if it is missing or truncated."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
