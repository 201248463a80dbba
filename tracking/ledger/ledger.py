"""The ledger: which recipes are done, with their results.  The truth; MLflow is the view.

Layout below the artifact root, a folder or S3::

    by-key/<kind>/<key>.json      one Entry, written last and only if absent
    former-keys/<kind>/<key>.json the key that took the place of this one, of an older format
    roles/<dataset>/<role>.json   teachers that a user has named
    calibrations/<device>...json  how fast a device is (``rd3 calibrate``)
    leases/<name>...json          who drives at the moment

Reading and writing it needs no MLflow.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

from rd3.errors import BadValue, DataCorrupt, StoreError, UnknownName
from rd3.recipe import KINDS, AnyRecipe, Key, SetRecipe, key_of, read_recipe
from rd3.registry import did_you_mean
from rd3.store import Entry
from tracking.ledger.lease import Lease
from tracking.ledger.object_store import open_objects


def _name(kind: str, key: Key) -> str:
    if kind not in KINDS:
        raise UnknownName(f"The ledger keeps no {kind!r}.", did_you_mean(kind, KINDS))
    return f"by-key/{kind}/{key}.json"


def former_name(kind: str, key: Key) -> str:
    """The document that leads from a key of an older format to today's."""
    return f"former-keys/{kind}/{key}.json"


class Ledger:
    """All entries below one artifact root."""

    def __init__(self, root: str):
        self.objects = open_objects(root)
        self.root = self.objects.root

    def keys(self, kind: str) -> set[Key]:
        """Keys of everything of ``kind`` that is done: one listing, no reads."""
        return self._keys(kind, "")

    def _keys(self, kind: str, start: str) -> set[Key]:
        """Without keys of an older format whose entries were upgraded."""
        return self._listed(_name(kind, start)) - self._listed(former_name(kind, start))

    def _listed(self, name: str) -> set[Key]:
        found = self.objects.names(name.removesuffix(".json"))
        return {each.rpartition("/")[2].removesuffix(".json") for each in found}

    def older_format(self) -> bool:
        """Whether results wait for ``rd3 ledger upgrade``; one entry of a kind is looked at."""
        for kind in ("teacher", "evaluation"):  # what changed its key in any case
            for key in sorted(self.keys(kind))[:1]:
                entry = self.find(kind, key)
                if entry is not None and read_recipe(entry.recipe).key != key == key_of(entry.recipe):
                    return True
        return False

    def former_keys(self, kind: str, start: str = "") -> dict[Key, Key]:
        """Keys of an older format, those that begin with ``start``, to the ones that took their place."""
        found = {}
        for key in self._listed(former_name(kind, start)):
            raw = self.objects.get(former_name(kind, key))
            if raw is not None:
                found[key] = json.loads(raw)["key"]
        return found

    def find(self, kind: str, key: Key) -> Entry | None:
        """The entry, or None."""
        return self.find_many(kind, [key]).get(key)

    def find_many(self, kind: str, keys: Iterable[Key]) -> dict[Key, Entry]:
        """The entries that there are among ``keys``."""
        wanted = {_name(kind, key): key for key in keys}
        return {wanted[name]: self._entry(name, raw) for name, raw in self.objects.get_many(wanted).items()}

    def _entry(self, name: str, raw: bytes) -> Entry:
        try:
            return Entry.model_validate_json(raw)
        except ValueError:
            raise DataCorrupt(
                f"Ledger entry {self.root}/{name} is not readable.", "delete that file; its recipe runs again"
            ) from None

    def mark(self, entry: Entry) -> Entry:
        """Write ``entry`` unless there is one of its key; return the one that stands."""
        data = (json.dumps(entry.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
        name = _name(entry.kind, entry.key)
        for _attempt in range(5):  # S3 may refuse two writers at once, so neither an own write nor a winner is certain
            if self.objects.put(name, data, only_if_absent=True):
                return entry
            winner = self.find(entry.kind, entry.key)
            if winner is not None:
                return winner
        raise StoreError(
            f"Cannot write {self.root}/{name}: it is neither absent nor readable.", "run the command again"
        )

    def forget(self, kind: str, key: Key) -> None:
        """Remove the entry, so that its recipe counts as missing; its artifacts stay."""
        self.objects.delete(_name(kind, key))

    def resolve(self, kind: str, prefix: str) -> Key:
        """The one key of ``kind`` that starts with ``prefix``, as people write it."""
        found = self._starting(prefix, (kind,))
        if not found:
            raise UnknownName(
                f"The ledger {self.root} has no {kind} {prefix}.", f"`rd3 {_LISTED[kind]}` shows what there is"
            )
        return self._only(prefix, found)[1]

    def resolve_any(self, prefix: str) -> tuple[str, Key]:
        """(kind, key) of the one entry, whatever it is, whose key starts with ``prefix``."""
        found = self._starting(prefix, KINDS)
        if not found:
            shown = ", ".join(f"`rd3 {command}`" for command in dict.fromkeys(_LISTED.values()))
            raise UnknownName(f"The ledger {self.root} has no key {prefix}.", f"see {shown}")
        return self._only(prefix, found)

    def _starting(self, prefix: str, kinds: Iterable[str]) -> list[tuple[str, Key]]:
        start = prefix.strip().lower()
        if not start or set(start) - set(string.hexdigits):
            raise BadValue(f"{prefix!r} is not the start of a key.", "give the first hexadecimal digits of one")
        return [
            (kind, key)
            for kind in kinds
            for key in sorted(self._keys(kind, start) | set(self.former_keys(kind, start).values()))
        ]

    def _only(self, prefix: str, found: list[tuple[str, Key]]) -> tuple[str, Key]:
        if len(found) == 1:
            return found[0]
        digits = len(prefix.strip()) + 6
        shown = ", ".join(f"{kind} {key[:digits]}" for kind, key in found[:4]) + (", ..." if len(found) > 4 else "")
        raise BadValue(f"{prefix} is the start of {len(found)} keys: {shown}.", "give more digits")

    def known_set(self, text: str) -> SetRecipe | None:
        """The recipe of the set that a key, or its first digits, means; None for text that is no key here."""
        start = text.strip().lower()
        if not start or set(start) - set(string.hexdigits) or not self._starting(start, ("set",)):
            return None
        entry = self.find("set", self.resolve("set", start))
        recipe = recipe_of(entry) if entry is not None else None
        return recipe if isinstance(recipe, SetRecipe) else None

    def set_role(self, dataset: str, role: str, recipe: dict[str, Any]) -> None:
        """Let grids call this teacher recipe ``role`` on ``dataset``; replaces what had that name."""
        data = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        self.objects.put(_role_name(dataset, role), data.encode())

    def role(self, dataset: str, role: str) -> dict[str, Any] | None:
        """The teacher recipe that a user has called ``role``, as plain data."""
        name = _role_name(dataset, role)
        raw = self.objects.get(name)
        if raw is None:
            return None
        try:
            recipe: dict[str, Any] = json.loads(raw)
            return recipe
        except ValueError:
            raise DataCorrupt(
                f"Teacher role {self.root}/{name} is not readable.", "delete that file and name it again"
            ) from None

    def roles(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(dataset, role) to teacher recipe, for all that users have named."""
        found = {}
        for name in sorted(self.objects.names("roles/")):
            _roles, dataset, role = (unquote(part) for part in name.removesuffix(".json").split("/"))
            recipe = self.role(dataset, role)
            if recipe is not None:
                found[dataset, role] = recipe
        return found

    def lease(self, name: str = "driver") -> Lease:
        """``with ledger.lease(): ...``: only one process at a time; the others get a :class:`StoreError`."""
        return Lease(self.objects, name)


def recipe_of(entry: Entry, where: str = "") -> AnyRecipe:
    """The recipe of an entry (of the ledger or folder ``where``), which must be the one that its key says.

    Raises :class:`BadValue` for an entry of an older format, :class:`DataCorrupt` for one that holds another recipe.
    """
    recipe = read_recipe(entry.recipe)
    if (recipe.kind, recipe.key) == (entry.kind, entry.key):
        return recipe
    if key_of(entry.recipe) == entry.key:
        fix = f"run `rd3 ledger upgrade{' ' * bool(where)}{where}`"
        raise BadValue(f"{entry.kind.capitalize()} {entry.key[:12]} is of an older format.", fix)
    raise DataCorrupt(
        f"Entry {entry.kind} {entry.key[:12]}{' at ' * bool(where)}{where} holds the recipe {recipe.kind} "
        f"{recipe.key[:12]}.",
        "remove that entry and make it again",
    )


_LISTED = {
    "teacher": "teacher list",
    "statistics": "status GRID",
    "set": "set list",
    "evaluation": "status GRID",
}


def _role_name(dataset: str, role: str) -> str:
    return f"roles/{quote(dataset, safe='')}/{quote(role, safe='')}.json"
