"""The ledger: the authoritative record of finished recipes and their results; MLflow only displays them.

Layout below the artifact root, a folder or S3::

    by-key/<kind>/<key>.json      one Entry, written last and only if absent
    former-keys/<kind>/<key>.json the key that replaced this one, which is of an older format
    roles/<dataset>/<role>.json   teachers and backbones named by users
    calibrations/<device>...json  measured speed of a device (``rd3 calibrate``)
    leases/<name>...json          the current driver
    ledger.json                   identity of the ledger

Beside them lie ``sweeps/`` (:mod:`tracking.runs.sweeps`), ``blocks/`` (of sets that several trials generate), and the
files of results: ``runs/``, or ``files/`` where they were uploaded past a tracking server.

Reading and writing the ledger does not need MLflow.  Stored entries name files below the root relative to it, so that
it can be moved; outside of this module an entry has the URI of its files.
"""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

from rd3.errors import BadValue, DataCorrupt, StoreError, UnknownName
from rd3.recipe import KINDS, Key, Recipe, SetRecipe, key_of, read_recipe
from rd3.registry import did_you_mean
from rd3.store import Entry, existing, is_key, read_entry
from rd3.upgrade import REKEYED
from tracking.ledger.addresses import to_absolute, to_relative
from tracking.ledger.lease import Lease
from tracking.ledger.object_store import json_with, open_objects, parsed, read_as


def _name(kind: str, key: Key) -> str:
    if kind not in KINDS:
        raise UnknownName(f"Unknown kind of recipe {kind!r}.", did_you_mean(kind, list(KINDS)))
    return f"by-key/{kind}/{key}.json"


_DAMAGED_FIX = "`rd3 artifacts verify --forget` removes such entries; their recipes run again"


def former_name(kind: str, key: Key) -> str:
    """Name of the object that maps a key of an older format to the current one."""
    return f"former-keys/{kind}/{key}.json"


class Ledger:
    """All entries below one artifact root."""

    def __init__(self, root: str):
        self.objects = open_objects(root)
        self.root = self.objects.root

    def keys(self, kind: str, start: str = "") -> set[Key]:
        """Keys of finished recipes of ``kind`` that begin with ``start``; reads no entry, but only lists names.

        Keys of an older format whose entries were upgraded are left out.
        """
        return self._listed(_name(kind, start)) - self._listed(former_name(kind, start))

    def _listed(self, incomplete_name: str) -> set[Key]:
        found = self.objects.names(incomplete_name.removesuffix(".json"))
        return {stem for each in found if is_key(stem := each.rpartition("/")[2].removesuffix(".json"))}

    def older_format(self) -> bool:
        """Whether ``rd3 ledger upgrade`` would convert the first entry of some kind; others are not read."""
        for kind in REKEYED:
            for key in sorted(self.keys(kind))[:1]:
                entry = self.find(kind, key)
                if entry is not None and read_recipe(entry.recipe).key != key == key_of(entry.recipe):
                    return True
        return False

    def former_keys(self, kind: str, start: str = "") -> dict[Key, Key]:
        """Map keys of an older format that begin with ``start`` to the keys that replaced them."""
        names = {former_name(kind, key): key for key in self._listed(former_name(kind, start))}
        return {
            names[name]: parsed(raw, json_with("key"), f"Former key {self.root}/{name}", "remove this file")["key"]
            for name, raw in self.objects.get_many(names).items()
        }

    def find(self, kind: str, key: Key) -> Entry | None:
        """The entry of a recipe, or None."""
        return self.find_many(kind, [key]).get(key)

    def find_many(self, kind: str, keys: Iterable[Key]) -> dict[Key, Entry]:
        """Map those of ``keys`` that have an entry to it."""
        wanted = {_name(kind, key): key for key in keys}
        found = self.objects.get_many(wanted)
        return {
            wanted[name]: to_absolute(read_entry(raw, f"Ledger entry {self.root}/{name}", _DAMAGED_FIX), self.objects)
            for name, raw in found.items()
        }

    def add(self, entry: Entry) -> Entry:
        """Write ``entry`` with its digest unless its key has one already; returns the entry that is in the ledger."""
        entry = to_absolute(entry.sealed(), self.objects)
        data, name = self._data(entry), _name(entry.kind, entry.key)
        for _attempt in range(5):  # S3 may refuse both of two concurrent writers
            if self.objects.put(name, data, only_if_absent=True):
                return entry
            winner = self.find(entry.kind, entry.key)
            if winner is not None:
                return winner
        raise StoreError(
            f"Cannot write {self.root}/{name}: it is neither absent nor readable.", "run the command again"
        )

    def replace(self, entry: Entry) -> Entry:
        """Write ``entry`` with its digest in place of the one that its key has; returns it."""
        entry = to_absolute(entry.sealed(), self.objects)
        self.objects.put(_name(entry.kind, entry.key), self._data(entry))
        return entry

    def _data(self, entry: Entry) -> bytes:
        plain = to_relative(entry, self.objects).model_dump(mode="json")
        return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()

    def forget(self, kind: str, key: Key) -> None:
        """Delete the entry, so that its recipe counts as missing; its artifacts are kept."""
        self.objects.delete(_name(kind, key))

    def resolve(self, kind: str, prefix: str) -> Key:
        """The key of ``kind`` that starts with ``prefix``.

        Raises :class:`UnknownName` if no key matches, :class:`BadValue` if several do or ``prefix`` is not hexadecimal.
        """
        found = self._starting(prefix, (kind,))
        if not found:
            raise UnknownName(
                f"The ledger {self.root} has no {kind} {prefix}.", f"`rd3 {_listing(kind)}` lists the known ones"
            )
        return self._only(prefix, found)[1]

    def named(self, kind: str, prefix: str) -> Entry:
        """The entry of ``kind`` whose key starts with ``prefix``; raises like :meth:`resolve`."""
        return existing(self, kind, self.resolve(kind, prefix))

    def resolve_any(self, prefix: str) -> tuple[str, Key]:
        """(kind, key) of the entry of any kind whose key starts with ``prefix``; raises like :meth:`resolve`."""
        found = self._starting(prefix, KINDS)
        if not found:
            shown = ", ".join(f"`rd3 {command}`" for command in dict.fromkeys(map(_listing, KINDS)))
            raise UnknownName(f"The ledger {self.root} has no key {prefix}.", f"see {shown}")
        return self._only(prefix, found)

    def _starting(self, prefix: str, kinds: Iterable[str]) -> list[tuple[str, Key]]:
        start = prefix.strip().lower()
        if not start or set(start) - set(string.hexdigits):
            raise BadValue(f"{prefix!r} is not the start of a key.", "give the first hexadecimal digits of one")
        return [
            (kind, key)
            for kind in kinds
            for key in sorted(self.keys(kind, start) | set(self.former_keys(kind, start).values()))
        ]

    def _only(self, prefix: str, found: list[tuple[str, Key]]) -> tuple[str, Key]:
        if len(found) == 1:
            return found[0]
        digits = len(prefix.strip()) + 6
        shown = ", ".join(f"{kind} {key[:digits]}" for kind, key in found[:4]) + (", ..." if len(found) > 4 else "")
        raise BadValue(f"{prefix} is the start of {len(found)} keys: {shown}.", "give more digits")

    def known_set(self, text: str) -> SetRecipe | None:
        """The recipe of the set with this key or key prefix; None if the text does not match a set."""
        start = text.strip().lower()
        if not start or set(start) - set(string.hexdigits) or not self._starting(start, ("set",)):
            return None
        entry = self.find("set", self.resolve("set", start))
        recipe = recipe_of(entry) if entry is not None else None
        return recipe if isinstance(recipe, SetRecipe) else None

    def set_role(self, dataset: str, role: str, recipe: dict[str, Any]) -> None:
        """Name the recipe of a teacher or backbone ``role`` on ``dataset``, for use in grids.

        Replaces an earlier one of that name; raises :class:`BadValue` if that is of the other kind.
        """
        kind = before = recipe.get("kind", "teacher")
        with contextlib.suppress(DataCorrupt):  # it is replaced
            before = (self.role(dataset, role) or recipe).get("kind", "teacher")
        if before != kind:
            raise BadValue(
                f"Role {role} of {dataset} is a {before} and cannot become a {kind}.", "choose another --role"
            )
        data = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        self.objects.put(_role_name(dataset, role), data.encode())

    def role(self, dataset: str, role: str) -> dict[str, Any] | None:
        """The recipe of the teacher or backbone that a user has named ``role``, as plain data, or None."""
        fix = "delete that file and name the teacher or backbone again"
        return read_as(self.objects, _role_name(dataset, role), json_with(), "Role", fix)

    def roles(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Map (dataset, role) to the recipe of its teacher or backbone, for all roles that users have named."""
        found = {}
        for name in sorted(self.objects.names("roles/")):
            _roles, dataset, role = (unquote(part) for part in name.removesuffix(".json").split("/"))
            recipe = self.role(dataset, role)
            if recipe is not None:
                found[dataset, role] = recipe
        return found

    def lease(self, name: str = "driver", work: str = "") -> Lease:
        """``with ledger.lease(): ...`` admits one process at a time; others get a :class:`LedgerInUse`.

        ``work``: what it is held for, in the message that others get.
        """
        return Lease(self.objects, name, work)


def recipe_of(entry: Entry, where: str = "") -> Recipe:
    """The recipe of an entry, checked against the entry's key; ``where`` names the ledger or folder in messages.

    Raises :class:`BadValue` for an entry of an older format, :class:`DataCorrupt` if the recipe has another key.
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
        "remove that entry and run its recipe again",
    )


def _listing(kind: str) -> str:
    """The command that lists recipes of a kind with their keys."""
    listed = {"teacher": "teacher list", "set": "set list", "backbone": "diffusion list"}
    return listed.get(kind, "plan GRID --all")


def _role_name(dataset: str, role: str) -> str:
    return f"roles/{quote(dataset, safe='')}/{quote(role, safe='')}.json"
