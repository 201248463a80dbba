"""The queue of a campaign: states and dependencies of its recipes; pure bookkeeping.

A recipe is ``there`` (in the store from the start), ``waiting`` for its parents or its turn, ``running``, to be retried
(``again``), or it ended: ``done``, ``failed`` (or another status of :mod:`rd3.errors`), ``blocked``, ``unfinished``.
Ready recipes are returned in the given order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rd3.recipe import Key, Recipe

OPEN = ("waiting", "again", "running")


@dataclass
class State:
    name: str = "waiting"
    reason: str = ""
    alone: bool = False
    """Whether this is the second attempt, with no other recipe running."""
    waits_for: set[Key] = field(default_factory=set)


class Queue:
    """Yields recipes whose parents are done, and blocks those whose parents failed."""

    def __init__(
        self, recipes: Iterable[Recipe], there: Callable[[str, Key], bool], after: Mapping[Key, Key] | None = None
    ):
        """``there(kind, key)``: whether the store has it.  ``after``: recipes that wait until another one has ended,
        successfully or not (smaller sets that are taken from a larger one).
        """
        self.recipes = {recipe.key: recipe for recipe in recipes}
        self.states = {key: State("there" if there(one.kind, key) else "waiting") for key, one in self.recipes.items()}
        self._children: dict[Key, list[Key]] = {}
        for key, recipe in self.recipes.items():
            if self.states[key].name == "waiting":
                self._await(recipe, there, (after or {}).get(key))

    def _await(self, recipe: Recipe, there: Callable[[str, Key], bool], after: Key | None) -> None:
        state = self.states[recipe.key]
        for kind, parent in recipe.parents():
            if parent in self.recipes:
                self._children.setdefault(parent, []).append(recipe.key)
                if self.states[parent].name == "blocked":
                    self.end(recipe.key, "blocked", self.states[parent].reason)
                elif self.states[parent].name != "there":
                    state.waits_for.add(parent)
            elif not there(kind, parent):
                self.end(
                    recipe.key, "blocked", f"its {kind} {parent[:12]} is neither in the store nor among the recipes"
                )
        if after in self.recipes and self.states[after].name in OPEN:
            state.waits_for.add(after)

    def ready(self) -> Iterator[Recipe]:
        """Recipes that can start now, by priority; retries wait until no other recipe can start."""
        if any(self.states[key].alone for key in self.running):
            return
        yield from self._startable("waiting")
        if not self.running:
            yield from self._startable("again")

    def _startable(self, name: str) -> Iterator[Recipe]:
        for key, state in self.states.items():
            if state.name == name and not state.waits_for:
                yield self.recipes[key]

    @property
    def running(self) -> list[Key]:
        return self.named(("running",))

    def is_open(self) -> bool:
        """Whether anything is running or may still be started."""
        return any(state.name in OPEN for state in self.states.values())

    def start(self, recipes: Sequence[Recipe]) -> None:
        for recipe in recipes:
            state = self.states[recipe.key]
            state.name, state.alone = "running", state.name == "again"

    def again(self, key: Key, reason: str) -> None:
        """Schedule a recipe for a second attempt, alone; ``reason`` says what went wrong."""
        self.states[key] = State("again", reason)

    def end(self, key: Key, name: str, reason: str = "") -> None:
        """Record how a recipe ended; its children may become ready or blocked."""
        self.states[key].name, self.states[key].reason = name, reason
        if name == "unfinished":
            return
        for state in self.states.values():
            state.waits_for.discard(key)
        if name != "done":
            cause = reason if name == "blocked" else f"its {self.recipes[key].label()} ({key[:12]}) {name}: {reason}"
            for child in self._children.get(key, ()):
                if self.states[child].name == "waiting":
                    self.end(child, "blocked", cause)

    def named(self, names: Collection[str]) -> list[Key]:
        """Keys of the recipes in these states, in order."""
        return [key for key, state in self.states.items() if state.name in names]
