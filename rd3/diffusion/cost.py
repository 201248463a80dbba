"""Cost of one image's pass through a diffusion model, from its sizes; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rd3.diffusion.unet_cost import LATENT_CHANNELS, Tally, autoencoder_tally, latent_side, unet_tally
from rd3.models import Cost
from rd3.recipe import BackboneRecipe

_BYTES_PER_VALUE = 4


class Sizes(NamedTuple):
    """What planning knows of a model."""

    forward: Cost = Cost()
    """Of one image through the denoiser."""
    values: int = 0
    """Number of saved values of all its networks."""
    latent: int = 0
    """Number of values of one latent."""
    autoencoder: Cost = Cost()
    """Of encoding and decoding one image, where the model has an autoencoder of its own."""

    @property
    def file_bytes(self) -> int:
        """Size of the model's files."""
        return _BYTES_PER_VALUE * self.values


PUBLISHED = {
    "dit": Sizes(Cost(2 * 118.64e9, 5e9), 833_000_000, 4 * 32**2),
    "text-to-image": Sizes(Cost(2 * 402e9, 2e10), 1_066_000_000, 4 * 64**2),
}
"""By family, of the model that is imported: DiT-XL/2 at 256 pixels (its paper's 118.64 billion multiply-adds) and
Stable Diffusion 1.5 at 512 pixels, each with its VAE; the traffic is a rough guess."""


def _dit(config: Mapping[str, Any], resolution: int) -> Sizes:
    width, depth = config["width"], config["depth"]
    levels = config.get("autoencoder")
    side = latent_side(levels, resolution) if levels else resolution
    tokens = (side // config["patch"]) ** 2
    block = tokens * (12 * width**2 + 2 * tokens * width) + 6 * width**2
    traffic = depth * tokens * 30 * width * _BYTES_PER_VALUE
    # Each block is saved with embedders of time and class of its own.
    values = depth * (19 * width**2 + 280 * width)
    forward = Cost(2.0 * depth * block, float(traffic))
    if not levels:
        return Sizes(forward, values, 3 * side**2)
    vae = autoencoder_tally(levels, config.get("layers", 1), resolution)
    return Sizes(forward, values + vae.values, LATENT_CHANNELS * side**2, _cost(vae))


def _text_to_image(config: Mapping[str, Any], resolution: int) -> Sizes:
    layers, text, length = config.get("layers", 1), config["text_width"], config.get("length", 77)
    side = latent_side(config["autoencoder"], resolution)
    unet = unet_tally(config["unet"], layers, side, text, length)
    # 150: rows for the tokens of a local tokenizer, biases and norms, roughly
    encoder = 12 * text**2 * config.get("text_depth", 2) + (length + 150) * text
    vae = autoencoder_tally(config["autoencoder"], layers, resolution)
    return Sizes(_cost(unet), unet.values + vae.values + encoder, LATENT_CHANNELS * side**2, _cost(vae))


def _cost(tally: Tally) -> Cost:
    return Cost(2.0 * tally.macs, float(_BYTES_PER_VALUE * tally.outputs))


SIZED: dict[str, Callable[[Mapping[str, Any], int], Sizes]] = {"dit": _dit, "text-to-image": _text_to_image}
"""By family, of models that are trained here, from their sizes and resolution; families that are not listed count as
free."""


def sizes_of(recipe: BackboneRecipe) -> Sizes:
    """Sizes of a backbone; zero for a family that is not listed."""
    if recipe.imported:
        return PUBLISHED.get(recipe.family, Sizes())
    sized = SIZED.get(recipe.family)
    return sized(recipe.config, recipe.resolution) if sized is not None else Sizes()
