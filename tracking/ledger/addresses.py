"""Addresses of files below the artifact root, which are stored relative to it, so that the root can be moved."""

from __future__ import annotations

import re

from rd3.store import Entry
from tracking.ledger.object_store import ObjectStore, local_path

_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")


def is_local(uri: str) -> bool:
    """Whether an address is a folder: a ``file:`` URI or an absolute path."""
    return uri.startswith(("file:", "/"))


def name_below(objects: ObjectStore, uri: str) -> str | None:
    """The name in ``objects`` of what is at ``uri``; None unless that lies below the root."""
    if objects.folder is None:
        name = uri.removeprefix(f"{objects.url()}/")
        return name if name != uri else None
    path = local_path(uri) if is_local(uri) else None
    if path is None or path == objects.folder or not path.is_relative_to(objects.folder):
        return None
    return path.relative_to(objects.folder).as_posix()


def to_relative(entry: Entry, objects: ObjectStore) -> Entry:
    """The entry as it is stored: with its files' name below the root of ``objects`` if they are there."""
    name = name_below(objects, entry.artifact or "")
    return entry if name is None else entry.model_copy(update={"artifact": name})


def to_absolute(entry: Entry, objects: ObjectStore) -> Entry:
    """The inverse of :func:`to_relative`: with the URI of its files."""
    if not entry.artifact or _ABSOLUTE.match(entry.artifact):
        return entry
    return entry.model_copy(update={"artifact": objects.url(entry.artifact)})
