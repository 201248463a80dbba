"""Does everything in the ledger still have its files?  Read at the source, whatever this machine keeps in its cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rd3.errors import BadValue, DataCorrupt, DataMissing, NotCarried
from rd3.recipe import KINDS, Key, key_of, read_recipe
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import folder_errors
from tracking.runs import artifacts
from tracking.store import TrackedStore


class Checked(NamedTuple):
    """One entry: ``damage`` is what is wrong with it, or empty."""

    kind: str
    key: Key
    label: str
    damage: str
    bare: bool = False
    """Imported without files, which were left out where it came from: nothing is wrong with it."""


def everything(ledger: Ledger) -> list[tuple[str, Key]]:
    """(kind, key) of all that is done, parents before children."""
    return [(kind, key) for kind in KINDS for key in sorted(ledger.keys(kind))]


def check_entries(store: TrackedStore, wanted: Iterable[tuple[str, Key]]) -> Iterator[Checked]:
    """Check entries and every sha256 of their files; one after the other is downloaded where they are far.

    Raises where a server does not answer: that says nothing about the files.
    """
    for kind, key in wanted:
        with folder_errors(store.cache):
            store.cache.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=store.cache, prefix=".verify.")
        with scratch as folder:
            yield _checked(store, kind, key, Path(folder))


def _checked(store: TrackedStore, kind: str, key: Key, scratch: Path) -> Checked:
    label = kind
    try:
        entry = store.find(kind, key)
        if entry is None:
            raise DataMissing(f"The ledger has no {kind} {key[:12]}.", "make or import it first")
        recipe = read_recipe(entry.recipe)
        label = recipe.label()
        if (recipe.kind, key_of(entry.recipe), entry.key) != (kind, key, key):
            raise DataCorrupt(f"The entry holds the recipe {recipe.kind} {recipe.key[:12]}.")
        artifacts.verify(entry, scratch, store.place.tracking_uri)
    except NotCarried:
        return Checked(kind, key, label, "", bare=True)
    except (DataMissing, DataCorrupt, BadValue) as error:
        return Checked(kind, key, label, error.message)
    return Checked(kind, key, label, "")
