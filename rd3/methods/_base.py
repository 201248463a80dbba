"""What a method is, and what it is given."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import yaml
from pydantic import ValidationError

from rd3.datasets import Dataset, DatasetInfo, Split
from rd3.diffusion.derivation import Derive
from rd3.errors import BadValue, UnknownName, Unsupported
from rd3.lazy import torch
from rd3.models import Cost
from rd3.recipe import CollectionSettings, SetRecipe
from rd3.registry import Registry, did_you_mean
from rd3.seeding import generator
from rd3.stopwatch import Stopwatch
from rd3.synthetic_set.block import Block
from rd3.values import PluginSettings, first_mistake, mistakes_in_field

if TYPE_CHECKING:
    from pathlib import Path

    from rd3.diffusion.backbone import Backbone
    from rd3.layer_statistics import LayerStatistics
    from rd3.models import NormalisedNetwork
    from rd3.synthetic_set import SetOnDisk
    from rd3.teacher.dynamics import Dynamics


class Settings(PluginSettings):
    """Base of a method's settings: typed, immutable, without unknown names, resolved into the recipe."""


_AnySettings = type[Settings]
"""The annotation of :attr:`Method.Settings`, in whose class body the name ``Settings`` means that attribute."""


class Support(NamedTuple):
    """Whether a method supports a dataset at an IPC; if not, ``reason`` becomes a footnote of the table."""

    ok: bool
    reason: str = ""


NOISE = "noise"
"""The init of a set that starts from Gaussian noise and has no set as a parent."""


class Recording(NamedTuple):
    """A recorded training on the whole dataset: that of a teacher, with another seed for each ``run``."""

    role: str
    """Role of the teacher whose network and training settings are used."""
    run: int = 0
    """Added to the teacher's seed."""


class Needs(NamedTuple):
    """What a method needs to generate a set, besides the dataset."""

    teachers: tuple[str, ...] = ()
    """Teacher roles, in the order in which the method uses them; more than one is a pool."""
    collection: CollectionSettings | None = None
    """How layer statistics of each teacher are collected; None if the method needs none."""
    dynamics: tuple[Recording, ...] = ()
    """Recorded trainings, in the order in which the method uses them."""
    backbones: tuple[str, ...] = ()
    """Roles of diffusion models, in the order in which the method uses them."""
    derived: tuple[Derive, ...] = ()
    """What is derived from each of ``backbones``, in their order; empty if the method derives nothing."""
    init: str = NOISE
    """Initial images: ``noise``, the name of a method that needs no init itself (``random``, ``rded``), whose set of
    equal size is generated first, or the key of any set of this dataset."""


@dataclass
class Context:
    """What a method has at hand while it generates a block."""

    recipe: SetRecipe
    settings: Any
    info: DatasetInfo
    dataset: Dataset
    teachers: Sequence[NormalisedNetwork]
    """Frozen, in eval mode, on ``device``; they take (B, 3, H, W) in [0, 1] and normalise internally."""
    device: torch.device
    statistics: Sequence[LayerStatistics] = ()
    """One for each teacher, on ``device``, where the recipe names them."""
    dynamics: Sequence[Dynamics] = ()
    """Recorded trainings, where the recipe names them."""
    backbones: Sequence[Backbone] = ()
    """Diffusion models, frozen, on ``device``, where the recipe names them; loaded for this set alone, so that the
    method may change them."""
    derived: Sequence[Path] = ()
    """Folders of what was derived from each of ``backbones``, where the recipe names it."""
    init: SetOnDisk | None = None
    """The set with the initial images: of the recipe's dataset and resolution, with at least its IPC."""
    progress: Callable[[float], None] = lambda fraction: None
    """Call with the finished fraction (0-1) of the current block; cheap."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Cache shared by all blocks of the set, e.g. for the sorted candidates of a class."""
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    """Generation time by name of phase: ``wall_s`` and ``process_s`` (CPU time), in seconds."""

    def part(self, number: int, of: int) -> Callable[[float], None]:
        """A ``progress`` for part ``number`` (from 0) of ``of`` equal parts of the block."""
        whole = self.progress
        return lambda fraction: whole((number + fraction) / of)

    def rng(self, stream: str, *numbers: int) -> torch.Generator:
        """A CPU random stream of this set, determined by set seed, name and numbers (such as a label) alone."""
        return generator(self.recipe.set_seed or 0, "synthesize", stream, *numbers)

    def autocast(self) -> AbstractContextManager[Any]:
        """Run network passes at the recipe's precision; cast outputs to fp32 for statistics and losses."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def class_indices(self, label: int, wanted: int = 0) -> np.ndarray:
        """Positions of the images of one class in :attr:`split`, ascending, as (n,) int64.

        Raises :class:`Unsupported` if there are fewer than ``wanted``, for methods that need an image for each of IPC.
        """
        if "labels" not in self.shared:
            self.shared["labels"] = self.dataset.labels(self.split)
        indices = np.flatnonzero(self.shared["labels"] == label)
        if len(indices) < wanted:
            raise Unsupported(
                f"Class {self.info.class_ids[label]} has {len(indices)} images in split {self.split}, IPC is "
                f"{self.recipe.ipc}."
            )
        return indices

    @property
    def split(self) -> Split:
        """The split from which the set is generated."""
        if self.recipe.data.split == "unknown":
            raise BadValue("A method generates sets from split 'train' or 'fit', not 'unknown'.")
        return self.recipe.data.split

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside as generation time of phase ``name`` (``wall_s`` and ``process_s``)."""
        stopwatch = Stopwatch()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            phase = self.phases.setdefault(name, {"wall_s": 0.0, "process_s": 0.0})
            for unit, seconds in stopwatch.spent().items():
                phase[unit] += seconds


class Method(ABC):
    """A method that generates synthetic sets.  Subclasses are stateless; their docstring is their card."""

    name: ClassVar[str]
    version: ClassVar[int]
    Settings: ClassVar[_AnySettings] = Settings
    counted: ClassVar[tuple[str, ...]] = ()
    """Names of settings that scale the compute of a set: a value below the published one is reported as reduced."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Published settings by dataset, its parent, its resolution (``32px``) or ``default``, with their ``source``.

    Empty: the rows of ``rd3/methods/presets/<method>.yaml``, if there is that file.
    """
    seeded: ClassVar[bool] = True
    """Whether a set depends on its set seed; if not, it is planned with set seed 0 alone."""
    quick: ClassVar[dict[str, Any]] = {}
    """Cheap settings for the conformance suite, so that it takes seconds."""

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        """Whether this method can generate ``ipc`` images per class of this dataset."""
        if ipc > info.train_per_class:
            return Support(False, f"{info.name} has {info.train_per_class} training images a class, IPC is {ipc}")
        return Support(True)

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        """Teachers, statistics and init of a set; ``teacher`` is the role that the grid names."""
        return Needs()

    def resolve_size(self, settings: Any, info: DatasetInfo, ipc: int) -> Any:
        """Settings with explicit values for those that depend on the set's size, such as RDED's images per class."""
        return settings

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        """Whether the set at a smaller IPC is a subset of the set at a larger one, all else equal.

        If so, the plan generates the largest set and takes the smaller ones from it: every block of a smaller set must
        be the beginning of the larger set's block of the same index.
        """
        return False

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        """All blocks, in order of their index; together they contain every (label, k) exactly once.

        By default one block per class: a smaller set has the first images of each.
        """
        return [Block(label, tuple((label, k) for k in range(recipe.ipc))) for label in range(info.num_classes)]

    @abstractmethod
    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        """(len(block.members), 3, H, W) uint8, or float32 in [0, 1]: the images of one block."""

    def blocks_at_once(self, info: DatasetInfo, device: torch.device) -> int:
        """Number of blocks to pass to :meth:`make_many` on this device.  Affects speed only, and is in no key."""
        return 1

    def make_many(self, blocks: Sequence[Block], ctx: Context) -> list[torch.Tensor]:
        """The images of several blocks, in their order: equal to :meth:`make` of each, up to rounding.

        Override it if several blocks are faster together than one after the other.  Every block keeps its own random
        streams; time and progress are those of all blocks together.
        """
        parts = [replace(ctx, progress=ctx.part(number, len(blocks))) for number in range(len(blocks))]
        return [self.make(block, own) for block, own in zip(blocks, parts, strict=True)]

    @abstractmethod
    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        """Compute of the whole set.

        ``forward(key)`` is the cost of one image's forward pass through that teacher or backbone.
        """


METHODS: Registry[type[Method]] = Registry("method", "rd3.methods")


def register_method(name: str, *, version: int) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: register a method under a name.  Raise ``version`` whenever a bug fix changes its results."""

    def add(method: type[Method]) -> type[Method]:
        method.name, method.version = name, version
        return METHODS.register(name)(method)

    return add


class Published(NamedTuple):
    """The preset of a method on a dataset."""

    values: dict[str, Any]
    source: str
    """Where the authors state them."""
    nearest: bool
    """True if the authors give no settings for this dataset; those of the nearest one are used if they give any."""
    reduces: dict[str, float]
    """Settings whose preset is below the published value, as on the dataset ``digits``, with the published value."""


def presets_of(method: str) -> dict[str, dict[str, Any]]:
    """Published settings of a method by dataset: its own ``presets``, else the rows of ``presets/<method>.yaml``."""
    return METHODS.get(method).presets or _shipped_presets(method)


@functools.cache
def _shipped_presets(method: str) -> dict[str, dict[str, Any]]:
    path = files("rd3.methods").joinpath("presets", f"{method}.yaml")
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def published(method: str, info: DatasetInfo, ipc: int | None = None) -> Published:
    """The preset of a method for a dataset (or for the dataset it is a subset of), from :func:`presets_of`.

    A row's ``at_ipc`` holds what differs at an IPC, values or their source, and applies if ``ipc`` equals it.
    """
    table = presets_of(method)
    for name in (info.name, info.parent, f"{info.resolution}px", "default"):
        if name in table:
            row = dict(table[name])
            row |= row.pop("at_ipc", {}).get(ipc, {})
            source, nearest = row.pop("source", ""), bool(row.pop("nearest", False)) or name != info.name
            return Published(row, source, nearest, row.pop("reduces", {}))
    return Published({}, "", True, {})


def resolve_settings(method: str, info: DatasetInfo, ipc: int, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings of a set: the preset, then overrides, then what depends on the set's size.

    Raises :class:`UnknownName` for an unknown setting and :class:`BadValue` for an invalid value.
    """
    cls = METHODS.get(method)
    for name in overrides or {}:
        _check_name(method, name)
    try:
        settings = cls.Settings.model_validate({**published(method, info, ipc).values, **(overrides or {})})
    except ValidationError as error:
        given = error.errors()[0]["input"]
        raise BadValue(f"Method {method}, setting {first_mistake(error)}, got {given!r}.") from None
    resolved: Settings = cls().resolve_size(settings, info, ipc)
    return resolved


def mistakes_in_setting(method: str, info: DatasetInfo, name: str, value: Any) -> list[str]:
    """Mistakes in the value of one setting, without type coercion; raises :class:`UnknownName` for an unknown name."""
    _check_name(method, name)
    return mistakes_in_field(METHODS.get(method).Settings, published(method, info).values, name, value)


def _check_name(method: str, setting: str) -> None:
    known = list(METHODS.get(method).Settings.model_fields)
    if setting not in known:
        raise UnknownName(f"Method {method} has no setting {setting!r}.", did_you_mean(setting, known))


def reductions(
    method: str, info: DatasetInfo, settings: Settings, ipc: int | None = None
) -> dict[str, tuple[float, float]]:
    """Counted settings that are below the published value at this IPC, as (used, published).

    What a preset leaves out is published as the default of the setting.
    """
    cls, preset = METHODS.get(method), published(method, info, ipc)
    if not preset.source:  # the authors state no settings
        return {}
    reference = {**preset.values, **preset.reduces}
    cut: dict[str, tuple[float, float]] = {}
    for name in cls.counted:
        used, expected = getattr(settings, name), reference.get(name, cls.Settings.model_fields[name].default)
        if isinstance(expected, int | float) and used < expected:  # a plugin's setting may have no default
            cut[name] = (used, expected)
    return cut
