"""What methods derive from a backbone before they generate, e.g. fine-tuned weights or prototypes; loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ValidationError

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue, RD3Error
from rd3.models import Cost
from rd3.recipe import BackboneRecipe, DerivedRecipe
from rd3.registry import Registry
from rd3.values import PluginSettings, first_mistake

if TYPE_CHECKING:
    from rd3.datasets import Dataset
    from rd3.diffusion.backbone import Backbone

Progress = Callable[[float, str], None]
"""Called with the finished fraction (0-1) and a note."""


class Derive(NamedTuple):
    """What a method asks for: a derivation by name, with its settings."""

    step: str
    settings: PluginSettings


class Derivation(ABC):
    """A step between a backbone and the sets that are sampled from it.  Subclasses are stateless.

    The time that it takes is part of the generation time of these sets, also when its result is reused.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    Settings: ClassVar[type[PluginSettings]]

    @abstractmethod
    def derive(
        self, recipe: DerivedRecipe, settings: Any, backbone: Backbone, dataset: Dataset, out: Path, progress: Progress
    ) -> dict[str, Any]:
        """Write files to ``out`` and return scalar figures.

        ``backbone`` is loaded for this call alone, on its device, and may be changed; ``settings`` are an instance of
        ``Settings``.  Random numbers come from streams of ``recipe.seed``.
        """

    @abstractmethod
    def cost(self, settings: Any, info: DatasetInfo, forward: Cost) -> Cost:
        """Compute of the derivation; ``forward`` is the cost of one image's forward pass through the backbone."""

    @abstractmethod
    def file_bytes(self, settings: Any, info: DatasetInfo, backbone: BackboneRecipe) -> int:
        """Size of its files in bytes, roughly."""


DERIVATIONS: Registry[type[Derivation]] = Registry("derivation", "rd3.diffusion.derivations")


def register_derivation(name: str, *, version: int) -> Callable[[type[Derivation]], type[Derivation]]:
    """Class decorator: register a derivation.  Raise ``version`` whenever a bug fix changes its results."""

    def add(derivation: type[Derivation]) -> type[Derivation]:
        derivation.name, derivation.version = name, version
        return DERIVATIONS.register(name)(derivation)

    return add


def derivation_of(recipe: DerivedRecipe) -> tuple[Derivation, Any]:
    """The derivation of a recipe and its settings.

    Raises :class:`RD3Error` if this is another version of it, and :class:`BadValue` for settings of another release.
    """
    derivation = DERIVATIONS.get(recipe.step)()
    if derivation.version != recipe.version:
        raise RD3Error(
            f"The recipe needs version {recipe.version} of derivation {recipe.step}, this is version "
            f"{derivation.version}.",
            "plan the grid again",
        )
    try:
        return derivation, derivation.Settings.model_validate(recipe.settings)
    except ValidationError as error:
        raise BadValue(
            f"The recipe has other settings than derivation {recipe.step} takes: {first_mistake(error)}.",
            "plan the grid again",
        ) from None
