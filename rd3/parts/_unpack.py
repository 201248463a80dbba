"""Unpack parts into a store; their content is not trusted and checked first."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.parts._format import INDEX, PATTERN, Member, is_result_path
from rd3.store import FolderStore, read_entry, sha256_file, write_atomically, write_errors


@dataclass(frozen=True)
class Unpacked:
    """Result of unpacking the parts in a folder."""

    store: Path
    entries: int
    lacking: dict[str, str]
    """``kind key`` to the reason, for entries left out because some of their files are missing."""


def holds_parts(folder: Path) -> bool:
    """Whether a folder contains parts."""
    return any(Path(folder).glob(PATTERN))


def unpack(folder: Path, store: Path) -> Unpacked:
    """Unpack the parts in ``folder`` into a store in the folder ``store``.

    The hash of every member and every file is checked.  Entries with missing files are left out and reported.  Raises
    :class:`DataMissing` if there are no parts, :class:`DataCorrupt` for a part that does not match its index, and
    :class:`StoreError` for files that cannot be written.
    """
    folder, store = Path(folder), Path(store)
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise DataMissing(f"{folder} holds no parts ({PATTERN}).", "give the folder that the machine returned")
    with write_errors(store, "free space there, or set TMPDIR to a folder on another disk"):
        try:
            entries = _place_files(paths, store)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            name = Path(error.filename2 or error.filename).name
            raise DataCorrupt(
                f"The parts in {folder} hold {name!r} both as a file and as a folder.", "collect the results again"
            ) from None
    lacking = {}
    for name, content in sorted(entries.items()):
        reason = _take_entry(store, name, content)
        if reason:
            lacking[" ".join(name.removesuffix(".json").split("/")[1:])] = reason
    return Unpacked(store, len(entries) - len(lacking), lacking)


def _place_files(paths: Sequence[Path], store: Path) -> dict[str, bytes]:
    """Write the files of all parts to their places in the store; returns the entries, by path."""
    scratch = store / ".shards"
    shards: dict[str, dict[int, Path | None]] = {}
    entries: dict[str, bytes] = {}
    try:
        for path in paths:
            for member, content in _members(path):
                if member.path.startswith("by-key/"):
                    entries[member.path] = content
                elif member.of == 1:
                    write_atomically(store / member.path, content)
                else:
                    kept = scratch / f"{hashlib.sha256(member.path.encode()).hexdigest()}.{member.shard}"
                    write_atomically(kept, content)
                    shards.setdefault(member.path, dict.fromkeys(range(1, member.of + 1)))[member.shard] = kept
        for name, found in shards.items():
            whole = [path for _shard, path in sorted(found.items()) if path is not None]
            if len(whole) == len(found):
                _join(store / name, whole)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return entries


def _join(path: Path, shards: Sequence[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as joined:
        for shard in shards:
            with open(shard, "rb") as stream:
                shutil.copyfileobj(stream, joined)


def _take_entry(store: Path, name: str, content: bytes) -> str:
    """Write an entry, after its files; returns the reason if it is left out, else an empty string."""
    entry = read_entry(content, name, "collect the results again")
    if name != f"by-key/{entry.kind}/{entry.key}.json":
        raise DataCorrupt(f"{name} holds the entry {entry.kind} {entry.key[:12]}.", "collect the results again")
    folder = store / "artifacts" / entry.kind / entry.key
    for file, expected in entry.files.items():
        if not (folder / file).is_file():
            return f"its file {file} is missing or incomplete"
        if sha256_file(folder / file) != expected:
            raise DataCorrupt(f"{name}: the sha256 of file {file} differs from the entry.", "collect the results again")
    FolderStore(store).put(entry, folder)
    return ""


def _members(path: Path) -> Iterator[tuple[Member, bytes]]:
    """Members of a part with their checked content; raises :class:`DataCorrupt`."""
    try:
        with zipfile.ZipFile(path) as opened:
            index, names = _index(opened), opened.namelist()
            if set(names) != {INDEX, *(member.name for member in index)} or len(names) != len(set(names)):
                raise _corrupt(path, f"its members are not those of {INDEX}")
            for member in index:
                content = _content(opened, member.name, member.size)
                if hashlib.sha256(content).hexdigest() != member.sha256:
                    raise _corrupt(path, f"the sha256 of {member.name} differs from {INDEX}")
                yield member, content
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _corrupt(path, f"the file is damaged ({error})") from None


def _corrupt(path: object, what: str) -> DataCorrupt:
    return DataCorrupt(f"{path}: {what}.", "copy the file again from where it was collected")


def _index(opened: zipfile.ZipFile) -> list[Member]:
    if INDEX not in opened.namelist():
        raise _corrupt(opened.filename, f"it has no {INDEX}")
    try:
        plain: Any = json.loads(_content(opened, INDEX, opened.getinfo(INDEX).file_size))
        if plain["format"] != 1:
            raise BadValue(f"{opened.filename} has format {plain['format']}, this version reads 1.", "update RD3")
        members = [Member.model_validate(member) for member in plain["members"]]
    except (ValueError, KeyError, TypeError):
        raise _corrupt(opened.filename, f"{INDEX} is not readable") from None
    for member in members:
        if not is_result_path(member.path) or member.shard > member.of:
            raise _corrupt(opened.filename, f"member {member.name!r} is not a path in a store")
    return members


def _content(opened: zipfile.ZipFile, name: str, size: int) -> bytes:
    """The bytes of a member; raises before reading one that is compressed or longer than declared."""
    info = opened.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != size or info.compress_size != size:
        raise _corrupt(opened.filename, f"{name} is compressed or has another size than declared")
    return opened.read(info)
