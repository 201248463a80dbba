"""With which code of others a result was computed, and whether that is installed now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from rd3.augmentations import AUGMENTATIONS
from rd3.diffusion.derivation import DERIVATIONS
from rd3.errors import RD3Error
from rd3.losses import LOSSES
from rd3.methods import METHODS
from rd3.models import NETWORKS
from rd3.own_code import code_hash
from rd3.recipe import Key, Recipe
from rd3.registry import Registry, how_to_renew
from rd3.store import Entry

REGISTRIES: Mapping[str, Registry[Any]] = {
    registry.kind: registry for registry in (METHODS, DERIVATIONS, LOSSES, AUGMENTATIONS, NETWORKS)
}


def _hash(kind: str, name: str) -> str | None:
    try:
        return code_hash(REGISTRIES[kind].get(name))
    except (KeyError, RD3Error):  # not installed here, or one of timm's networks
        return None


def own_code(recipe: Recipe) -> dict[str, Any]:
    """Provenance of a recipe's entry: ``own_code``, hashes of what it uses that does not ship with RD3, by kind."""
    found: dict[str, dict[str, str]] = {}
    for kind, name in recipe.plugins():
        if code := _hash(kind, name):
            found.setdefault(kind, {})[name] = code
    return {"own_code": found} if found else {}


def other_code(entries: Iterable[Entry]) -> dict[Key, str]:
    """Results that would be other ones now, as code of their own differs from what is installed, with a sentence.

    Hashes of different versions of Python are not compared.
    """
    installed = cache(_hash)
    found: dict[Key, str] = {}
    for entry in entries:
        used = [(kind, *one) for kind, codes in entry.made.get("own_code", {}).items() for one in codes.items()]
        for kind, name, code in used:
            now = installed(kind, name)
            if now and now != code and now.partition(":")[0] == code.partition(":")[0]:
                how = how_to_renew(REGISTRIES[kind].get(name))
                found[entry.key] = (
                    f"computed by other code of {kind} {name} than is installed now; {how} to compute it again"
                )
    return found
