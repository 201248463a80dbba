"""Upgrade of a ledger to the current format: entries get new keys, parents first.

Files, their hashes and the content digest are unchanged; a result gains ``ran_precision`` where the old recipe stated
it, and the entry is sealed by a new digest and records its old key (``formerly``).  The old entries are left out by
:meth:`Ledger.keys`, but found by their key, until :func:`remove_former` is called;
``former-keys/<kind>/<key>.json`` maps an old key to the new one permanently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rd3.recipe import KINDS, Key, read_recipe
from rd3.store import Entry
from rd3.upgrade import FORMAT, ran_precision, upgraded
from tracking.ledger.ledger import Ledger, former_name


class Upgraded(NamedTuple):
    """An upgraded entry."""

    kind: str
    old: Key
    new: Key


class Left(NamedTuple):
    """An entry that could not be upgraded."""

    kind: str
    key: Key
    reason: str


@dataclass
class Outcome:
    """Result of :func:`upgrade_entries`."""

    upgraded: list[Upgraded] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    merged: list[Upgraded] = field(default_factory=list)
    """Entries whose new key already had an entry: of a recipe that differed in irrelevant fields, or of a newer run."""
    keys: dict[Key, Key] = field(default_factory=dict)
    """Map of old to new keys of all entries and of the parents that may be missing; to itself where the key stays."""


def upgrade_entries(ledger: Ledger, parents: Mapping[Key, Key]) -> Outcome:
    """Write every entry of an older format under its new key; idempotent.

    ``parents`` maps old to new keys of recipes that may be missing from the ledger although entries depend on them.  An
    entry with a parent that is neither in the ledger nor in ``parents`` is not upgraded.
    """
    outcome = Outcome(keys=dict(parents))
    for kind in KINDS:
        former = ledger.former_keys(kind)
        entries = ledger.find_many(kind, ledger.keys(kind))
        waiting = [entry for entry in entries.values() if entry.recipe.get("format", 1) < FORMAT]
        current = {key: key for key in entries.keys() - {entry.key for entry in waiting}}
        # bf16 of format 1 is auto now: a bf16 recipe of today has the key of one of then, which old entries mean.
        outcome.keys = current | outcome.keys | former
        while waiting:  # a set may depend on another set
            ready = [entry for entry in waiting if not _unknown(entry, outcome.keys)]
            if not ready:
                break
            settled = {entry.key for entry in ready}
            waiting = [entry for entry in waiting if entry.key not in settled]
            for entry in ready:
                _upgrade(ledger, entry, outcome)
        for entry in waiting:
            lacking = ", ".join(f"{parent} {key[:12]}" for parent, key in _unknown(entry, outcome.keys))
            outcome.left.append(Left(kind, entry.key, f"it depends on {lacking}, which is unknown here"))
    return outcome


def _unknown(entry: Entry, keys: Mapping[Key, Key]) -> list[tuple[str, Key]]:
    """Parents (kind, key as the entry states it) of which it is not known whether they have another key now."""
    return [(kind, key) for kind, key in read_recipe(entry.recipe).parents() if key not in keys]


def _upgrade(ledger: Ledger, entry: Entry, outcome: Outcome) -> None:
    recipe = read_recipe(upgraded(entry.recipe, outcome.keys))
    outcome.keys[entry.key] = recipe.key
    if recipe.key == entry.key:  # the format is no part of a key: without changed fields and parents, it stays
        return
    # What a recipe of format 1 says about its precision is part of the result now.
    result = entry.result | ({"ran_precision": ran} if (ran := ran_precision(entry.recipe)) else {})
    formerly = entry.formerly or entry.key
    new = {"key": recipe.key, "recipe": recipe.model_dump(mode="json"), "result": result, "formerly": formerly}
    kept = ledger.add(entry.model_copy(update=new))
    ledger.objects.put(former_name(entry.kind, entry.key), json.dumps({"key": recipe.key}).encode())
    found = outcome.upgraded if kept.formerly == formerly else outcome.merged
    found.append(Upgraded(entry.kind, entry.key, recipe.key))


def remove_former(ledger: Ledger) -> int:
    """Delete the old entries of all upgraded ones; returns their number.  Files are kept: the new entries use them."""
    removed = 0
    for kind in KINDS:
        for old, new in ledger.former_keys(kind).items():
            entry = ledger.find(kind, old)
            # An entry of today may have the key of an old one.
            if entry is not None and entry.recipe.get("format", 1) < FORMAT and ledger.find(kind, new) is not None:
                ledger.forget(kind, old)
                removed += 1
    return removed
