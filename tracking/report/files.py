"""The files of a report: written into a folder, and those of an earlier report that it no longer has removed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rd3.store import sha256_file, write_atomically, write_errors


def write_files(out: Path, files: Mapping[str, str | bytes], what: str) -> dict[str, Path]:
    """Write files by name into a folder and return their paths; ``what`` they are, for the message of an error.

    Files that an earlier call with the same ``what`` has written there are removed if they are not among these and
    nobody has changed them: their hashes are in the hidden file ``.<what>.json``.
    """
    raw = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    listing = out / f".{what}.json"
    with write_errors(out, "choose another folder (--out)", f"the {what}"):
        earlier = [path for name, path in _unchanged(out, listing) if name not in raw]
        for name, content in raw.items():
            write_atomically(out / name, content)
        for path in earlier:
            path.unlink(missing_ok=True)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in raw.items()}
        write_atomically(listing, json.dumps(hashes, indent=1))
    return {name: out / name for name in files}


def _unchanged(out: Path, listing: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of the files in a listing that are in the folder as they were written."""
    try:
        hashes = json.loads(listing.read_bytes())
    except (FileNotFoundError, ValueError):  # no earlier report, or one that was cut off
        return
    for name, digest in hashes.items() if isinstance(hashes, dict) else ():
        path = out / name
        inside = path.resolve().is_relative_to(out.resolve()) and not path.is_symlink()
        if inside and path.is_file() and sha256_file(path) == digest:
            yield name, path
