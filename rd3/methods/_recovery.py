"""Shared steps of methods that optimise pixels against a network's BatchNorm statistics.

The optimised variable lives in normalised space: pixel ``p`` of channel ``c`` is ``(p - mean_c) / std_c``.
Source: VILA-Lab/SRe2L ``SRe2L/recover/data_synthesis.py`` and ``utils.py``, whose steps CDA, DWA, G-VBSM, EDC, DELT
and CV-DD share; the statistics term is DeepInversion's (Yin et al., CVPR 2020).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import Field

from rd3.augment import crop_and_resize, crop_boxes
from rd3.datasets import DatasetInfo
from rd3.errors import Diverged, Unsupported
from rd3.lazy import nn, torch
from rd3.methods import NOISE, Block, Context, Cost, Method, Settings
from rd3.methods._pixels import SaveFormat
from rd3.models._matched import matched_layers
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    from rd3.models import NormalisedNetwork

_CHECK_EVERY = 50
"""Iterations between reads of the loss: each read waits for the device."""


class RecoverySettings(Settings):
    """Settings that all methods that optimise pixels share."""

    iterations: int = Field(ge=1)
    """Optimisation steps on each batch of images."""
    lr: float = Field(gt=0)
    """Initial learning rate of Adam on normalised pixels; decays to 0 by cosine."""
    beta1: float = Field(default=0.5, ge=0, lt=1)
    """Decay rate of Adam's first moment."""
    beta2: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of Adam's second moment."""
    first_multiplier: float = Field(default=10.0, ge=0)
    """Weight of the first matched layer in the statistics loss; every other layer has weight 1."""
    init: str = Field(default=NOISE, exclude=True)
    """Initial images: ``noise``, a set of a method that needs no initial images itself, such as ``rded``, or the key of
    a set of this dataset with at least this IPC.  The recipe stores only the key of that set."""
    save_format: SaveFormat = "png"
    """``png`` stores pixels losslessly, ``jpeg`` after compression at quality 75, as most of the authors did."""


class RecoveryMethod(Method):
    """Base of methods that optimise pixels."""

    counted = ("iterations",)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        """A forward and a backward pass of every image through one of the teachers at every iteration.

        Weights are frozen: a backward pass to the pixels costs about one forward pass.
        """
        passes: float = 2 * recipe.settings["iterations"] * recipe.ipc * info.num_classes
        return passes / len(recipe.teachers) * sum(map(forward, recipe.teachers), Cost())


def by_image(ipc: int, num_classes: int, size: int) -> list[Block]:
    """Blocks with one image of each of ``size`` classes: image 0 of every class in class order, then image 1."""
    labels = range(num_classes)
    batches = [(k, labels[first : first + size]) for k in range(ipc) for first in labels[::size]]
    return [Block(index, tuple((label, k) for label in group)) for index, (k, group) in enumerate(batches)]


def start(block: Block, ctx: Context, stream: torch.Generator) -> torch.Tensor:
    """Initial images of a block, (B, 3, H, W) in the first teacher's normalised space: noise, or those of the init."""
    side = ctx.info.resolution
    if ctx.init is None:
        return torch.randn((len(block.members), 3, side, side), generator=stream).to(ctx.device)
    images = ctx.init.rows(block.rows(ctx.info.num_classes)).to(ctx.device)
    return ctx.teachers[0].normalise(images if images.is_floating_point() else images.float() / 255)


def cosine(iteration: int, iterations: int) -> float:
    """Factor on the learning rate at iteration 0 .. iterations-1: half a cosine from 1, without warm-up."""
    return 0.5 * (1 + math.cos(math.pi * iteration / iterations))


class LayerLoss(ExitStack[None]):
    """A loss on the inputs of some layers of a bare network, summed over them.

    The first layer counts ``first_multiplier`` times, every other once.  Use it as a context manager: inside, every
    forward pass of the network sets :meth:`value`.
    """

    def __init__(self, layers: Mapping[str, torch.nn.Module], first_multiplier: float):
        super().__init__()
        self.layers = layers
        self.weights = {name: 1.0 if number else first_multiplier for number, name in enumerate(layers)}
        self._terms: dict[str, torch.Tensor] = {}

    @abstractmethod
    def term(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        """The unweighted loss of one layer, from its input (B, D, H, W) in float32."""

    def measured(self) -> Iterable[str]:
        """Names of the layers that count until the end of this ``with``."""
        return self.layers

    def __enter__(self) -> Self:
        self.callback(self._terms.clear)
        for name in self.measured():
            self.enter_context(self.layers[name].register_forward_pre_hook(functools.partial(self._measure, name)))
        return self

    def _measure(self, name: str, _layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._terms[name] = self.term(name, inputs[0].float())

    def value(self) -> torch.Tensor | float:
        """The loss of the last forward pass; 0 if no layer was measured."""
        return sum(self.weights[name] * term for name, term in self._terms.items())


class BatchNormLoss(LayerLoss):
    """Distance of a batch's statistics from the running ones, over all BatchNorm2d layers of a bare network.

    It uses channel means and biased variances of each layer's *input*, in module order:
    ``sum_l m_l (v ||running_var_l - var_l|| + ||running_mean_l - mean_l||)``, with L2 norms, ``m_0 =
    first_multiplier``, all other ``m_l = 1``, and ``v = variance_weight``.  If a forward pass contains several
    ``batches`` of equal size, one after the other, statistics are computed for each batch and the distances are summed.
    """

    def __init__(
        self, network: torch.nn.Module, first_multiplier: float, variance_weight: float = 1.0, *, batches: int = 1
    ):
        found = matched_layers(network).items()
        super().__init__({name: layer for name, layer in found if isinstance(layer, nn.BatchNorm2d)}, first_multiplier)
        if not self.layers:
            raise Unsupported(
                f"{type(network).__name__} has no BatchNorm2d layers with running statistics to match.",
                "use a teacher with batch normalisation",
            )
        self.variance_weight, self.batches = variance_weight, batches

    def term(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        from rd3.methods._moments import channel_moments

        layer: Any = self.layers[name]
        mean, variance = channel_moments(maps, self.batches)
        of_variance, of_mean = (layer.running_var - variance).norm(dim=1), (layer.running_mean - mean).norm(dim=1)
        return cast("torch.Tensor", (self.variance_weight * of_variance + of_mean).sum())


def shared_view(
    images: torch.Tensor,
    stream: torch.Generator,
    *,
    min_area: float | None,
    flip: bool,
    jitter: int,
    two_sided: bool = False,
) -> torch.Tensor:
    """Square images (B, 3, H, H) -> (B, 3, H, H), differentiable: the same crop, flip and cyclic shift (roll) for all.

    ``min_area`` of the resized crop is a fraction of the image, None disables cropping; the probability of a flip is
    0.5; each axis is rolled by 0 to ``jitter`` pixels, or by -jitter to jitter if ``two_sided``.
    """
    if min_area is not None:
        side = images.shape[-1]
        box = crop_boxes(1, side, side, min_area, stream)
        images = crop_and_resize(images, box.expand(len(images), -1), side)
    if flip and torch.rand((), generator=stream) < 0.5:
        images = images.flip(-1)
    rolls = torch.randint(-jitter if two_sided else 0, jitter + 1, (2,), generator=stream).tolist()
    return images.roll(rolls, dims=(2, 3))


class PixelSpace:
    """The normalised pixel space of one network."""

    def __init__(self, network: NormalisedNetwork):
        self.mean, self.std = network.mean, network.std  # (1, 3, 1, 1), of pixels in [0, 1]

    def clamp_(self, images: torch.Tensor) -> None:
        """Clamp every channel, in place, to the values that stand for pixels in [0, 1]."""
        torch.maximum(images, -self.mean / self.std, out=images)
        torch.minimum(images, (1 - self.mean) / self.std, out=images)

    def to_unit(self, images: torch.Tensor) -> torch.Tensor:
        """Undo the normalisation, differentiably and without clamping: the input of a network that normalises."""
        return images * self.std + self.mean

    def to_255(self, images: torch.Tensor) -> torch.Tensor:
        """Convert to float pixels in 0-255, clamped."""
        return self.to_unit(images).clamp(0, 1) * 255


def optimise(
    images: torch.Tensor,
    loss_of: Callable[[torch.Tensor, int], torch.Tensor],
    space: PixelSpace,
    settings: RecoverySettings,
    *,
    where: str,
    progress: Callable[[float], None],
) -> torch.Tensor:
    """Optimise images by Adam with a per-iteration cosine schedule, clamping after every step.

    ``images``: (B, 3, H, W) float in normalised space, changed in place.  ``loss_of(images, iteration)`` is the scalar
    loss to minimise; ``where`` names the block in errors; ``progress`` is called with the finished fraction (0-1).
    Returns the last iterate.  Raises :class:`Diverged` if the loss or the final images are not finite.
    """
    iterations = settings.iterations
    images.requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=1e-8)
    last_finite = "no finite loss before"
    for iteration in range(iterations):
        optimiser.param_groups[0]["lr"] = settings.lr * cosine(iteration, iterations)
        loss = loss_of(images, iteration)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            space.clamp_(images)
        if iteration % _CHECK_EVERY == 0 or iteration == iterations - 1:
            value, wrong = loss.item(), ""
            if not math.isfinite(value):
                wrong = f"the loss was {value}"
            elif iteration == iterations - 1 and not bool(images.isfinite().all()):
                wrong = "pixels were not finite"
            if wrong:
                raise Diverged(
                    f"{where}: {wrong} at iteration {iteration + 1} of {iterations} ({last_finite}).",
                    "lower lr or check the teacher",
                )
            last_finite = f"last finite loss {value:.4g} at iteration {iteration + 1}"
            progress((iteration + 1) / iterations)
    return images.detach()
