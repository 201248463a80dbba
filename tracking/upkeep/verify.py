"""Verify the files of ledger entries at their source, without using this machine's cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rd3.errors import BadValue, DataCorrupt, DataMissing, FilesNotExported
from rd3.recipe import KINDS, Key, key_of, read_recipe
from rd3.store import Entry, existing
from tracking.ledger.ledger import Ledger
from tracking.runs import artifacts
from tracking.runs.digests import compare
from tracking.store import TrackedStore


class Checked(NamedTuple):
    """Result for one entry: ``damage`` describes what is wrong, or is empty."""

    kind: str
    key: Key
    label: str
    damage: str
    bare: bool = False
    """Whether the entry was imported without files, which the export left out; this is not damage."""
    run_id: str | None = None
    """The MLflow run that an intact entry names."""


def everything(ledger: Ledger) -> list[tuple[str, Key]]:
    """(kind, key) of all entries, by kind in the order of :data:`rd3.recipe.KINDS`."""
    return [(kind, key) for kind in KINDS for key in sorted(ledger.keys(kind))]


def check_entries(
    store: TrackedStore, wanted: Iterable[tuple[str, Key]], tagged: Mapping[str, str] | None = None
) -> Iterator[Checked]:
    """Check entries and the sha256 of all their files, downloading remote ones an entry at a time.

    Entries must match their ``result.json``, and the digests of their MLflow runs where ``tagged`` has one
    (:func:`tracking.runs.digests.tagged_digests`).

    Raises if a server does not respond, since that is not damage.
    """
    for kind, key in wanted:
        yield _checked(store, kind, key, tagged or {})


def _checked(store: TrackedStore, kind: str, key: Key, tagged: Mapping[str, str]) -> Checked:
    label = kind
    try:
        entry = existing(store, kind, key)
        recipe = read_recipe(entry.recipe)
        label = recipe.label()
        # key_of, since an entry of an older format is intact under its former key.
        if (recipe.kind, key_of(entry.recipe), entry.key) != (kind, key, key):
            raise DataCorrupt(f"The entry holds the recipe {recipe.kind} {recipe.key[:12]}.")
        compare(entry, tagged)
        with artifacts.from_source(entry, store.cache, store.place.tracking_uri) as folder:
            _compare_result(entry, folder)
    except FilesNotExported:
        return Checked(kind, key, label, "", bare=True)
    except (DataMissing, DataCorrupt, BadValue) as error:
        return Checked(kind, key, label, error.message)
    return Checked(kind, key, label, "", run_id=entry.run_id)


def _compare_result(entry: Entry, folder: Path) -> None:
    """Raise :class:`DataCorrupt` if a figure of the entry is another in the ``result.json`` among its files."""
    if "result.json" not in entry.files:
        return
    written = json.loads((folder / "result.json").read_text())
    for name, figure in entry.result.items():
        if written.get(name, figure) != figure:
            raise DataCorrupt(f"The entry says {name} {figure}, its result.json says {written[name]}.")
