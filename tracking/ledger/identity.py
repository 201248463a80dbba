"""The identity of a ledger, which distinguishes its MLflow runs from those of another ledger at an equal path.

Two machines may have the same path, and a home may be copied beside its original.  The identity is stored at the root
with what a copy cannot have: the folder's inode number, or the URL of a bucket.
"""

from __future__ import annotations

import json
import uuid

from tracking.ledger.object_store import ObjectStore, json_with, read_as

_NAME = "ledger.json"


def identity(objects: ObjectStore, *, create: bool) -> str:
    """The ledger's identity, a random hexadecimal string; empty if there is none and ``create`` is false.

    With ``create`` one is written if there is none, or if the stored one belongs to the ledger that this is a copy of.
    """
    fix = "delete that file; earlier MLflow runs then no longer count as this ledger's"
    known = read_as(objects, _NAME, json_with("id", "where"), "Identity", fix)
    if known is not None and known["where"] == _where(objects):
        return str(known["id"])
    if not create:
        return ""
    if objects.folder is not None:
        objects.folder.mkdir(parents=True, exist_ok=True)
    new = {"id": uuid.uuid4().hex, "where": _where(objects)}
    if objects.put(_NAME, json.dumps(new).encode(), only_if_absent=known is None):
        return new["id"]
    return identity(objects, create=True)  # another process was faster


def _where(objects: ObjectStore) -> str:
    """What a copy of the ledger would not share: the URL of the bucket, or the folder's inode number."""
    return objects.root if objects.folder is None else f"inode {objects.folder.stat().st_ino}"
