"""A diffusion backbone: its networks, the space it works in, what it is conditioned on, and its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from rd3.artifact import ArtifactManifest
from rd3.data_checks import check_classes
from rd3.datasets import DatasetInfo
from rd3.device import usable_device
from rd3.diffusion.codec import Codec
from rd3.diffusion.sampler import Conditions
from rd3.errors import BadValue
from rd3.recipe import BackboneRecipe, BackboneTraining
from rd3.registry import Registry
from rd3.tensor_bytes import sha256_of
from rd3.values import first_mistake

if TYPE_CHECKING:
    from rd3.teacher.training import Images


class BackboneManifest(ArtifactManifest):
    """The content of ``backbone.json``."""

    noun: ClassVar[str] = "backbone"
    file: ClassVar[str] = "backbone.json"
    fix: ClassVar[str] = "fetch, train or import the backbone again"

    family: str
    resolution: int
    """Side of the dataset's images, to which what it generates is resized, in pixels."""
    parameters: int
    """Number of trainable values of all its networks."""
    origin: str
    """Source of the weights: ``trained by RD3``, or what was imported."""
    licence: str | None = None
    """Licence that the source states; None for what was trained here."""
    content: str
    """Digest of all tensors (:func:`content_digest`)."""
    revision: str | None = None
    """Commit of the source, if it has one."""
    ran_precision: str | None = None
    """Precision of the training; None for imported weights."""
    curve: dict[str, list[dict[str, float]]] = {}
    """Rows of each stage of the training: ``epoch`` from 1, ``loss`` (mean over images)."""


class Backbone(ABC):
    """A diffusion model on one device, in eval mode.

    A family is a subclass, registered with :func:`register_backbone`: how its networks are made, saved and loaded, and
    how they predict.  Its folder is a diffusers folder: one subfolder for each component, beside the manifest.
    """

    family: ClassVar[str]
    components: ClassVar[tuple[str, ...]]
    """Subfolders that the folder of a published model must have."""
    codec: Codec
    guided_channels: int
    """Leading channels of the output to which classifier-free guidance applies."""

    def __init__(self, info: DatasetInfo):
        self.info = info
        self.device = torch.device("cpu")

    @classmethod
    @abstractmethod
    def create(cls, config: Mapping[str, Any], info: DatasetInfo, stream: torch.Generator) -> Self:
        """A model of these sizes, initialised from ``stream``; raises :class:`BadValue` for an invalid size."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, info: DatasetInfo) -> Self:
        """The model in a diffusers folder, fp32, for this dataset's classes."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write every component to its subfolder, as its library does."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """All networks by the name of their component."""

    @abstractmethod
    def scheduler(self, name: str | None = None) -> Any:
        """A new diffusers scheduler: the one of the published model, or ``ddpm``, ``ddim`` or ``pndm``."""

    @abstractmethod
    def conditions(self, labels: torch.Tensor) -> Conditions:
        """What images of these classes, (B,) int64, are conditioned on."""

    @abstractmethod
    def denoise(self, latents: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w), times (B,) and conditions to output (B, C, h, w), or (B, 2C, h, w) with variances."""

    @abstractmethod
    def stages(self, recipe: BackboneRecipe) -> list[Stage]:
        """How it is trained, one stage after the other."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self.codec.shape

    def to(self, device: torch.device | str) -> Self:
        """Move all networks to a device."""
        self.device = usable_device(str(device))
        for network in self.networks().values():
            network.to(self.device)
        return self

    def frozen(self) -> Self:
        """All networks in eval mode, without gradients."""
        for network in self.networks().values():
            network.eval().requires_grad_(False)
        return self

    @property
    def size(self) -> int:
        """Number of trainable values of all networks."""
        return sum(value.numel() for network in self.networks().values() for value in network.parameters())


Inputs = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""What a stage is trained on: positions (B,) of training images and a CPU stream to (B, ...), augmented by draws."""


class Stage(NamedTuple):
    """One stage of a training: what is trained, on what, and on which loss."""

    name: str
    networks: nn.ModuleList
    loss: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
    """Inputs (B, ...), labels (B,) int64 on the device and a CPU stream to a scalar."""
    training: BackboneTraining
    inputs: Callable[[Images, bool], Inputs]
    """Called when the stage begins; the second argument: whether images are mirrored at random."""
    after: Callable[[Images], None] = lambda images: None
    """Called with the training images once the stage has its final weights, also when it was finished by an earlier
    attempt."""


BACKBONES: Registry[type[Backbone]] = Registry("backbone family", "rd3.diffusion.families")


def register_backbone(family: str) -> Callable[[type[Backbone]], type[Backbone]]:
    """Class decorator: register a family of backbones under a name."""

    def add(backbone: type[Backbone]) -> type[Backbone]:
        backbone.family = family
        return BACKBONES.register(family)(backbone)

    return add


Sizes = TypeVar("Sizes", bound=BaseModel)


def parse_sizes(model: type[Sizes], family: str, config: Mapping[str, Any]) -> Sizes:
    """The sizes in a recipe; raises :class:`BadValue` with the first that is wrong."""
    try:
        return model.model_validate(config)
    except ValidationError as error:
        raise BadValue(f"Backbone {family}, size {first_mistake(error)}.") from None


def wrong_size(family: str, name: str, why: str, fix: str = "") -> BadValue:
    """The error for a size of a model that is trained here."""
    return BadValue(f"Backbone {family}, size {name}: {why}.", fix)


def content_digest(backbone: Backbone) -> str:
    """sha256 of the names, shapes and fp32 values of all tensors of a model, component by component."""
    tensors = {
        f"{component}.{name}": value
        for component, network in backbone.networks().items()
        for name, value in network.state_dict().items()
    }
    return sha256_of(
        part for name, value in sorted(tensors.items()) for part in (f"{name} {tuple(value.shape)}\n", value.float())
    )


def write_backbone(folder: Path, backbone: Backbone, recipe: BackboneRecipe, **more: Any) -> None:
    """Save a model and its manifest, the manifest last; ``more``: its fields that say where the model comes from."""
    backbone.save(folder)
    sizes = {"resolution": recipe.resolution, "parameters": backbone.size}
    BackboneManifest.of(recipe, family=backbone.family, **sizes, **more).write(folder)


def open_backbone(
    folder: Path, recipe: BackboneRecipe, info: DatasetInfo, device: torch.device | str = "cpu"
) -> Backbone:
    """The backbone in a folder: fp32, frozen, on ``device``.

    Raises :class:`DataCorrupt` for the folder of another backbone and :class:`ClassOrderError` for another class list.
    """
    BackboneManifest.read(folder).check(folder, recipe)
    check_classes(recipe, info)
    return BACKBONES.get(recipe.family).load(Path(folder), info).to(device).frozen()
