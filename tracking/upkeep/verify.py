"""Verify the files of ledger entries at their source, without using this machine's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rd3.errors import BadValue, DataCorrupt, DataMissing, NotCarried
from rd3.recipe import KINDS, Key, key_of, read_recipe
from tracking.ledger.ledger import Ledger
from tracking.runs import artifacts
from tracking.store import TrackedStore


class Checked(NamedTuple):
    """Result for one entry: ``damage`` describes what is wrong, or is empty."""

    kind: str
    key: Key
    label: str
    damage: str
    bare: bool = False
    """Imported without files, which the export left out; this is not damage."""


def everything(ledger: Ledger) -> list[tuple[str, Key]]:
    """(kind, key) of all entries, parents before children."""
    return [(kind, key) for kind in KINDS for key in sorted(ledger.keys(kind))]


def check_entries(store: TrackedStore, wanted: Iterable[tuple[str, Key]]) -> Iterator[Checked]:
    """Check entries and the sha256 of all their files, downloading remote ones an entry at a time.

    Raises if a server does not respond, since that is not damage.
    """
    for kind, key in wanted:
        yield _checked(store, kind, key)


def _checked(store: TrackedStore, kind: str, key: Key) -> Checked:
    label = kind
    try:
        entry = store.find(kind, key)
        if entry is None:
            raise DataMissing(f"The ledger has no {kind} {key[:12]}.", "run or import it first")
        recipe = read_recipe(entry.recipe)
        label = recipe.label()
        if (recipe.kind, key_of(entry.recipe), entry.key) != (kind, key, key):
            raise DataCorrupt(f"The entry holds the recipe {recipe.kind} {recipe.key[:12]}.")
        artifacts.check_source(entry, store.cache, store.place.tracking_uri)
    except NotCarried:
        return Checked(kind, key, label, "", bare=True)
    except (DataMissing, DataCorrupt, BadValue) as error:
        return Checked(kind, key, label, error.message)
    return Checked(kind, key, label, "")
