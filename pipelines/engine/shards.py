"""Sets in shares: several trials make blocks of one set, wherever they run, and one puts them together.

Finished blocks wait as objects ``blocks/<key>/<name>`` at the artifact root, which every worker reaches.  A block is
the same whoever makes it, so a set in shares is bit-identical to one made in one go on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rd3.datasets import DatasetInfo
from rd3.methods import METHODS
from rd3.recipe import Key, Recipe, SetRecipe
from rd3.store import write_atomically
from rd3.synthetic_set.writer import BLOCKS
from tracking.ledger.object_store import ObjectStore


@dataclass(frozen=True)
class Share:
    """Every ``count``-th block of a set, from block ``number``; a trial of its own, in no ledger."""

    of: SetRecipe
    number: int
    count: int
    kind: ClassVar[str] = "share"

    @property
    def key(self) -> str:
        return f"{self.of.key}-{self.number + 1}of{self.count}"

    def parents(self) -> tuple[tuple[str, Key], ...]:
        return self.of.parents()

    def label(self) -> str:
        return f"{self.of.label()} share {self.number + 1}/{self.count}"

    @property
    def blocks(self) -> tuple[int, int]:
        """(first, step) of the block indices."""
        return self.number, self.count


def share_out(
    recipes: Iterable[Recipe], count: int, info_of: Callable[[str], DatasetInfo | None]
) -> dict[Key, list[Share]]:
    """Shares of every set that has more than one block, at most ``count`` each."""
    shared: dict[Key, list[Share]] = {}
    for recipe in recipes:
        info = info_of(recipe.data.name)
        if isinstance(recipe, SetRecipe) and recipe.content is None and info is not None:
            parts = min(count, len(METHODS.get(recipe.method)().blocks(recipe, info)))
            if parts > 1:
                shared[recipe.key] = [Share(recipe, number, parts) for number in range(parts)]
    return shared


def _place(key: Key) -> str:
    return f"blocks/{key}/"


def deliver(objects: ObjectStore, key: Key, folder: Path) -> None:
    """Send the blocks in a set's folder to where the others find them, if they are not there yet."""
    there = set(objects.names(_place(key)))
    for path in sorted((folder / BLOCKS).glob("*.safetensors")):
        if _place(key) + path.name not in there:
            objects.put(_place(key) + path.name, path.read_bytes())


def collect(objects: ObjectStore, key: Key, folder: Path, blocks: tuple[int, int] = (0, 1)) -> None:
    """Bring the blocks that wait for a set into its folder; whoever opens them checks them.

    ``blocks`` is (first, step) of those that are wanted.
    """
    first, step = blocks
    for name in objects.names(_place(key)):
        target = folder / BLOCKS / name.rpartition("/")[2]
        wanted = int(target.stem) % step == first and not target.exists()
        content = objects.get(name) if wanted else None
        if content is not None:
            write_atomically(target, content)


def discard(objects: ObjectStore, key: Key) -> None:
    """The set is whole: nothing waits any more."""
    for name in list(objects.names(_place(key))):
        objects.delete(name)
