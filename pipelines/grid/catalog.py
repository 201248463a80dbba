"""The catalog: datasets, teacher roles, protocols and sets that grids and sweeps refer to by name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rd3.datasets import DatasetInfo, Roots, dataset_fingerprint, dataset_info
from rd3.planning.teacher_roles import Role, teacher_role
from rd3.protocol import Preset, preset, preset_reader
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    from pipelines.settings import Session
    from tracking.ledger.ledger import Ledger

T = TypeVar("T")


class Catalog:
    """Names and what they mean, each looked up once; read-only.

    Without arguments it knows what ships with RD3.  ``roots`` adds the user's datasets, ``presets`` a folder with the
    user's protocols, ``ledger`` the teacher roles and sets in it; ``protocols`` take precedence over those of the same
    name.  Methods raise :class:`rd3.errors.UnknownName`, with a did-you-mean, for a name that means nothing.
    """

    def __init__(
        self,
        roots: Roots | None = None,
        *,
        presets: Path | None = None,
        ledger: Ledger | None = None,
        protocols: Mapping[str, Preset] | None = None,
    ):
        self.roots, self.presets, self.ledger = roots, presets, ledger
        self.protocols = dict(protocols or {})
        self._preset_of = preset if presets is None else preset_reader(presets)
        self._found: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, session: Session) -> Catalog:
        """Everything that a user's session knows."""
        return cls(session.roots, presets=session.presets, ledger=session.ledger)

    def with_protocols(self, protocols: Mapping[str, Preset]) -> Catalog:
        """A catalog in which these names mean these protocols."""
        given = {**self.protocols, **protocols}
        return type(self)(self.roots, presets=self.presets, ledger=self.ledger, protocols=given)

    def dataset(self, name: str) -> DatasetInfo:
        """Facts of a dataset, which need not be on the disk."""
        return self._once(("dataset", name), partial(dataset_info, name, self.roots))

    def fingerprint(self, name: str, *, training_only: bool = False) -> str:
        """The fingerprint of a dataset, of its training part alone with ``training_only``; raises as opening it."""
        if self.roots is None:
            raise ValueError("a catalog without roots reads no data")
        look = partial(dataset_fingerprint, name, self.roots, training_only=training_only)
        return self._once(("fingerprint", name, training_only), look)

    def role(self, dataset: str, name: str) -> Role:
        """What a teacher role means on a dataset."""
        named_by_user = {} if self.ledger is None else {"user_role": self.ledger.role}
        return self._once(("role", dataset, name), lambda: teacher_role(self.dataset(dataset), name, **named_by_user))

    def protocol(self, name: str) -> Preset:
        """The preset of a protocol."""
        return self.protocols.get(name) or self._once(("protocol", name), partial(self._preset_of, name))

    def known_set(self, text: str) -> SetRecipe | None:
        """The set that a key, or its first digits, means; None for text that is no key of a set in the ledger."""
        return None if self.ledger is None else self._once(("set", text), partial(self.ledger.known_set, text))

    def _once(self, key: Hashable, look: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = look()
        found: T = self._found[key]
        return found
