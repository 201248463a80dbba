"""The catalog: datasets, teachers, presets and settings that files refer to by name, each looked up once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rd3.datasets import DatasetInfo, Roots, dataset_fingerprint, dataset_info
from rd3.datasets._splits import VALIDATION_DIVISOR
from rd3.methods import Settings, resolve_settings
from rd3.models import network_info
from rd3.planning.backbones import BackboneRole, backbone_role
from rd3.planning.roles import UserRole, no_user_role
from rd3.planning.teacher_roles import Role, teacher_role
from rd3.preset_rules import Case, check_names
from rd3.protocol import EvalProtocol, Preset, preset, preset_reader, resolve_protocol
from rd3.recipe import SetRecipe, SourceSplit
from rd3.values import canonical

if TYPE_CHECKING:
    from pipelines.settings import Session
    from tracking.ledger.ledger import Ledger

T = TypeVar("T")


class Frame(NamedTuple):
    """The dataset, set and student for which the values of a protocol are filled in from a preset."""

    factor: int
    """The dataset's patches per side (:attr:`rd3.datasets.DatasetInfo.factor`)."""
    set_size: int
    """Number of images of the synthetic set."""
    case: Case
    """The part that conditions of a preset's rules can name."""

    @classmethod
    def of(cls, info: DatasetInfo, ipc: int, student: str, teacher_network: str | None) -> Frame:
        """For a student and a set; ``teacher_network``: that of the teacher that gives the labels, or the first."""
        case = Case(student == teacher_network, student, info.name, info.num_classes, ipc)
        return cls(info.factor, ipc * info.num_classes, case)

    def only(self, facts: frozenset[str]) -> Frame:
        """A copy with only those of ``student``, ``dataset``, ``classes`` and ``ipc`` that are listed in ``facts``.

        Frames that differ in what a preset ignores become equal, and their protocol is resolved once.
        """
        ignored: dict[str, Any] = dict.fromkeys({"student", "dataset", "classes", "ipc"} - facts)
        return self._replace(case=self.case._replace(**ignored))

    def resolve(self, preset: Preset, values: Mapping[str, Any]) -> EvalProtocol:
        """A preset with values on top, resolved; raises as :func:`rd3.protocol.resolve_protocol` does."""
        case = self.case._asdict()
        return resolve_protocol(preset, factor=self.factor, set_size=self.set_size, **case, overrides=values)


ANY_FRAME = Frame(1, 10**9, Case(True, "resnet18", "cifar10", classes=10, ipc=10))
"""Stands in where a protocol is checked without a set and a student; so large that it caps no batch size."""


class Catalog:
    """Read-only resolution of names, and of settings and protocols for them, each done once.

    Without arguments it contains what is built in.  ``roots`` adds the user's datasets, ``presets`` a folder with the
    user's protocols, ``ledger`` the teacher roles and sets in it; ``protocols`` take precedence over those of the same
    name.  Methods raise :class:`rd3.errors.UnknownName`, with a suggestion, for unknown names.
    """

    def __init__(
        self,
        roots: Roots | None = None,
        *,
        presets: Path | None = None,
        ledger: Ledger | None = None,
        protocols: Mapping[str, Preset] | None = None,
    ):
        self.roots, self.ledger = roots, ledger
        self.protocols = protocols or {}
        self._preset_of = preset if presets is None else preset_reader(presets)
        self._user_role: UserRole = no_user_role if ledger is None else ledger.role
        self.used_protocols: set[str] = set()
        """Names of the protocols that were looked up, which a submitted grid takes along."""
        self.used_datasets: set[str] = set()
        """Names of the datasets that were looked up, which a submitted grid needs on the cluster."""
        self._found: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, session: Session, protocols: Mapping[str, Preset] | None = None) -> Catalog:
        """The catalog of a session, with these protocols added."""
        return cls(session.roots, presets=session.presets, ledger=session.ledger, protocols=protocols)

    @property
    def required_ledger(self) -> Ledger:
        """The ledger; raises :class:`ValueError` for a catalog of what is built in."""
        if self.ledger is None:
            raise ValueError("a catalog without a ledger has no results")
        return self.ledger

    def dataset(self, name: str, split: SourceSplit = "train") -> DatasetInfo:
        """Description of a dataset, which need not be on disk; ``fit``: without its validation images."""
        self.used_datasets.add(name)
        if split == "fit":
            return self._once(("dataset", name, split), lambda: without_validation(self.dataset(name)))
        return self._once(("dataset", name), partial(dataset_info, name, self.roots))

    def fingerprint(self, name: str, *, training_only: bool = False) -> str:
        """The fingerprint of a dataset, or of its training part with ``training_only``; raises as opening it does."""
        if self.roots is None:
            raise ValueError("a catalog without roots reads no data")
        compute = partial(dataset_fingerprint, name, self.roots, training_only=training_only)
        return self._once(("fingerprint", name, training_only), compute)

    def role(self, dataset: str, name: str) -> Role:
        """The teacher of a role on a dataset."""
        return self._once(("role", dataset, name), lambda: teacher_role(self.dataset(dataset), name, self._user_role))

    def backbone(self, dataset: str, name: str) -> BackboneRole:
        """The diffusion backbone of a role on a dataset."""
        key = ("backbone", dataset, name)
        return self._once(key, lambda: backbone_role(self.dataset(dataset), name, self._user_role))

    def protocol(self, name: str) -> Preset:
        """The preset of a protocol, whose rules name known students and datasets."""
        self.used_protocols.add(name)
        return self.protocols.get(name) or self._once(("protocol", name), partial(self._checked_preset, name))

    def _checked_preset(self, name: str) -> Preset:
        found = self._preset_of(name)
        check_names(found.rules, f"Protocol {name}", network=network_info, dataset=self.dataset)
        return found

    def settings(self, method: str, info: DatasetInfo, ipc: int, values: dict[str, Any]) -> Settings:
        """The resolved settings of a method's set; raises as :func:`rd3.methods.resolve_settings` does."""
        key = ("settings", method, info, ipc, canonical(values))
        return self._once(key, partial(resolve_settings, method, info, ipc, values))

    def evaluation(self, protocol: str, frame: Frame, values: Mapping[str, Any]) -> EvalProtocol:
        """A protocol with values on top, resolved; raises as :meth:`Frame.resolve` does."""
        preset = self.protocol(protocol)
        frame = frame.only(self._once(("facts", protocol), lambda: preset.facts))
        key = ("evaluation", protocol, frame, canonical(values))
        return self._once(key, partial(frame.resolve, preset, values))

    def known_set(self, text: str) -> SetRecipe | None:
        """The set in the ledger with this key or key prefix, or None."""
        return None if self.ledger is None else self._once(("set", text), partial(self.ledger.known_set, text))

    def _once(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = compute()
        found: T = self._found[key]
        return found


def without_validation(info: DatasetInfo) -> DatasetInfo:
    """Description of a dataset with the counts of its training images without the validation part."""
    validation = max(1, info.train_per_class // VALIDATION_DIVISOR)  # images per class
    counts = {
        "train_per_class": info.train_per_class - validation,
        "train_count": info.train_count - validation * info.num_classes,
    }
    return info.model_copy(update=counts)
