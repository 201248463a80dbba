"""What a method is, and what it is given."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rd3.datasets import Dataset, DatasetInfo, Split
from rd3.errors import BadValue, UnknownName
from rd3.models import Cost
from rd3.recipe import Collection, SetRecipe
from rd3.registry import Registry, did_you_mean
from rd3.seeding import generator
from rd3.synthetic_set.block import Block

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rd3.layer_statistics import LayerStatistics
    from rd3.synthetic_set import SetOnDisk


class Settings(BaseModel):
    """Base of a method's settings: typed, strict, resolved into the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Support(NamedTuple):
    """Can this method make this set?  If not, ``reason`` becomes a footnote of the table."""

    ok: bool
    reason: str = ""


NOISE = "noise"
"""The start of a set that has no other set as a parent."""


class Needs(NamedTuple):
    """What a set is made from besides the data."""

    teachers: tuple[str, ...] = ()
    """Roles, in the order the method wants them; more than one is a pool."""
    collection: Collection | None = None
    """How statistics are collected, of each of these teachers; None: none are needed."""
    init: str = NOISE
    """What images are started from: ``noise``, the name of a method that needs no start of its own (``random``,
    ``rded``), whose set of equal size is made first, or the key of any set of this dataset."""


@dataclass
class Context:
    """What a method may use while it makes a block."""

    recipe: SetRecipe
    settings: Any
    info: DatasetInfo
    dataset: Dataset
    teachers: Sequence[torch.nn.Module]
    """Frozen, in eval mode, on ``device``; they take pixels in [0, 1] and normalise themselves."""
    device: torch.device
    statistics: Sequence[LayerStatistics] = ()
    """One for each teacher, on ``device``, where the recipe names them."""
    init: SetOnDisk | None = None
    """The set to start from: the recipe's dataset and resolution, at least its IPC."""
    progress: Callable[[float], None] = lambda fraction: None
    """Call with the done fraction (0-1) of the current block; cheap."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Scratch that lives as long as the set's making, e.g. a class's sorted candidates."""
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    def part(self, number: int, of: int) -> Callable[[float], None]:
        """``progress`` for part ``number`` (from 0) of so many equal ones."""
        tell = self.progress
        return lambda fraction: tell((number + fraction) / of)

    def rng(self, stream: str, block: int | None = None) -> torch.Generator:
        """A CPU random stream of this set: a function of set seed, name and block alone."""
        names = (stream,) if block is None else (stream, block)
        return generator(self.recipe.set_seed or 0, "synthesize", *names)

    def autocast(self) -> AbstractContextManager[Any]:
        """Run network passes in the recipe's precision; statistics and losses stay fp32 (cast what comes out)."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def class_indices(self, label: int) -> np.ndarray:
        """Positions of one class in the split that the recipe draws from, ascending."""
        import numpy as np

        split = self.split
        labels = self.shared.get("labels")
        if labels is None:
            labels = self.shared["labels"] = self.dataset.labels(split)
        return np.flatnonzero(labels == label)

    @property
    def split(self) -> Split:
        """The split that the recipe draws from."""
        if self.recipe.data.split == "unknown":
            raise BadValue("A set that a method makes draws from split 'train' or 'fit', not 'unknown'.")
        return self.recipe.data.split

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as generation time of phase ``name`` (``wall_s`` and ``process_s``)."""
        wall, process = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                import torch

                torch.cuda.synchronize(self.device)
            spent = self.phases.setdefault(name, {"wall_s": 0.0, "process_s": 0.0})
            spent["wall_s"] += time.perf_counter() - wall
            spent["process_s"] += time.process_time() - process


class Method(ABC):
    """A way to make a synthetic set.  Subclasses are stateless; their docstring is their card."""

    name: ClassVar[str]
    version: ClassVar[int]
    Settings: ClassVar[type[Settings]]
    counted: ClassVar[tuple[str, ...]] = ()
    """Settings that say how much work goes into a set: fewer than published is reported as reduced."""
    quick: ClassVar[dict[str, Any]] = {}
    """Settings under which the conformance suite runs, so that it takes seconds."""

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        """Whether this method can make ``ipc`` images a class of this dataset."""
        if ipc > info.train_per_class:
            return Support(False, f"{info.name} has {info.train_per_class} training images a class, IPC is {ipc}")
        return Support(True)

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        """Teacher roles; ``teacher`` is the role that the grid names."""
        return Needs()

    def resolve_size(self, settings: Any, info: DatasetInfo, ipc: int) -> Any:
        """Settings that follow from the size of the set (RDED's images a class, say), made explicit."""
        return settings

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        """Whether the images of a smaller IPC are those of a larger one, all else equal.

        Then the plan makes the largest set and takes the others out of it: every block of the smaller set has to be the
        beginning of the larger one's block of the same index.
        """
        return False

    @abstractmethod
    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        """All blocks, in order; together they hold every (label, k) exactly once."""

    @abstractmethod
    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        """(len(block.members), 3, H, W) uint8, or float32 in [0, 1]: the images of one block."""

    def blocks_at_once(self, info: DatasetInfo, device: torch.device) -> int:
        """How many blocks :meth:`make_many` is to be given on this device.  In no key: it changes speed alone."""
        return 1

    def make_many(self, blocks: Sequence[Block], ctx: Context) -> list[torch.Tensor]:
        """The images of several blocks, in their order: what :meth:`make` gives of each, but for rounding.

        For methods that make several faster together than one after the other.  Every block keeps its own random
        streams; time and progress are those of all together.
        """
        parts = [replace(ctx, progress=ctx.part(number, len(blocks))) for number in range(len(blocks))]
        return [self.make(block, own) for block, own in zip(blocks, parts, strict=True)]

    @abstractmethod
    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        """Work of the whole set; ``forward(key)`` is one image's pass through the teacher of that key."""


METHODS: Registry[type[Method]] = Registry("method", "rd3.methods")


def register_method(name: str, *, version: int) -> Callable[[type[Method]], type[Method]]:
    """File a method under a name.  Raise ``version`` whenever a mended bug changes its results."""

    def file_it(method: type[Method]) -> type[Method]:
        method.name, method.version = name, version
        return METHODS.register(name)(method)

    return file_it


def method_names() -> list[str]:
    """All methods that can be had."""
    return METHODS.names()


class Published(NamedTuple):
    """Preset settings of a method on a dataset."""

    values: dict[str, Any]
    source: str
    nearest: bool
    """True where the authors gave no settings for this dataset and the nearest were taken."""
    reduces: dict[str, float]
    """Fields that are smaller than published even by default (digits), with the published value."""


@functools.cache
def presets_of(method: str) -> dict[str, Any]:
    """Rows of ``presets/<method>.yaml``, by dataset; empty where the method has no such file."""
    path = files("rd3.methods").joinpath("presets", f"{method}.yaml")
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def published(method: str, info: DatasetInfo, ipc: int | None = None) -> Published:
    """The preset of a method for a dataset (or for the whole it is a subset of): ``presets/<method>.yaml``.

    A row's ``at_ipc`` holds what differs at some IPC, values or whence they are; it counts where ``ipc`` is that one.
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
    """Preset, then overrides, then what follows from the set's size; strict, with a did-you-mean."""
    cls = METHODS.get(method)
    changed = dict(overrides or {})
    for name in changed:
        if name not in cls.Settings.model_fields:
            raise UnknownName(
                f"Method {method} has no setting {name!r}.", did_you_mean(name, list(cls.Settings.model_fields))
            )
    try:
        settings = cls.Settings.model_validate({**published(method, info, ipc).values, **changed})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadValue(f"Method {method}, setting {place}: {first['msg']}, got {first['input']!r}.") from None
    return cls().resolve_size(settings, info, ipc)


def reductions(
    method: str, info: DatasetInfo, settings: Settings, ipc: int | None = None
) -> dict[str, tuple[float, float]]:
    """What a set of this IPC has less of than its authors published, by counted setting: (made, published)."""
    preset = published(method, info, ipc)
    reference = {**preset.values, **preset.reduces}
    cut: dict[str, tuple[float, float]] = {}
    for name in METHODS.get(method).counted:
        made, expected = getattr(settings, name), reference.get(name)
        if expected is not None and made < expected:
            cut[name] = (made, expected)
    return cut
