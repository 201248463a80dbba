"""Cost of one image's pass through a diffusion model, counted layer by layer from its sizes; loads no torch.

U-Nets and VAEs are in the layout of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rd3.models import Cost
from rd3.recipe import BackboneRecipe

_BYTES_PER_VALUE = 4
LATENT_CHANNELS = 4
"""Of the VAE of Stable Diffusion, which DiT uses too, and of the autoencoders that are trained here."""
_IMAGE_CHANNELS = 3
_ACCESSES_PER_OUTPUT = 8
"""Reads and writes per output of a convolution or a linear layer, with its norm, activation and residual; a guess."""


@dataclass
class Tally:
    """What one image's pass through some layers takes."""

    macs: int = 0
    """Multiply-adds."""
    weights: int = 0
    accesses: int = 0
    """Values read or written, a rough guess."""

    def linear(self, fan_in: int, fan_out: int, positions: int) -> None:
        """A linear layer, or a convolution with all its taps in ``fan_in``, at this number of positions."""
        self.macs += fan_in * fan_out * positions
        self.weights += fan_in * fan_out
        self.accesses += _ACCESSES_PER_OUTPUT * fan_out * positions

    def residual(self, channels: int, out_channels: int, positions: int, time: int) -> None:
        """A residual block with two 3x3 convolutions; ``time``: dimension of the embedded time, 0 without."""
        self.linear(9 * channels, out_channels, positions)
        self.linear(9 * out_channels, out_channels, positions)
        self.linear(time, out_channels, 1)
        if channels != out_channels:
            self.linear(channels, out_channels, positions)

    def attention(self, width: int, positions: int, text: int, length: int) -> None:
        """A transformer block: attention to all positions and to a text, a gated feed-forward layer, projections.

        ``text``: dimension of each of the ``length`` embedded tokens.
        """
        for _projection in range(8):  # in and out, queries, keys, values and output, queries and output for the text
            self.linear(width, width, positions)
        self.linear(text, 2 * width, length)
        self.linear(width, 12 * width, positions)
        self.macs += 2 * width * positions * (positions + length)


def unet_tally(widths: Sequence[int], layers: int, side: int, text: int, length: int) -> Tally:
    """A U-Net of latents of this side: all levels but the last attend to ``length`` tokens of ``text`` values."""
    tally, last = Tally(), len(widths) - 1
    time = 4 * widths[0]
    tally.linear(9 * LATENT_CHANNELS, widths[0], side**2)
    tally.linear(widths[0], time, 1)
    tally.linear(time, time, 1)
    channels, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        positions = (side // 2**level) ** 2
        for _layer in range(layers):
            tally.residual(channels, width, positions, time)
            if level < last:
                tally.attention(width, positions, text, length)
            channels = width
            skips.append(width)
        if level < last:
            tally.linear(9 * width, width, positions // 4)
            skips.append(width)
    positions = (side // 2**last) ** 2
    tally.residual(channels, channels, positions, time)
    tally.attention(channels, positions, text, length)
    tally.residual(channels, channels, positions, time)
    for level, width in reversed(list(enumerate(widths))):
        positions = (side // 2**level) ** 2
        for _layer in range(layers + 1):
            tally.residual(channels + skips.pop(), width, positions, time)
            if level < last:
                tally.attention(width, positions, text, length)
            channels = width
        if level > 0:
            tally.linear(9 * width, width, 4 * positions)
    tally.linear(9 * channels, LATENT_CHANNELS, side**2)
    return tally


def latent_side(widths: Sequence[int], resolution: int) -> int:
    """Side of the latents of images of ``resolution`` pixels, by a VAE with these channels by level."""
    return int(resolution // 2 ** (len(widths) - 1))


def autoencoder_tally(widths: Sequence[int], layers: int, resolution: int) -> Tally:
    """A VAE with these channels by level, which encodes and decodes an image of ``resolution`` pixels."""
    tally, last = Tally(), len(widths) - 1
    positions = [(resolution // 2**level) ** 2 for level in range(last + 1)]
    tally.linear(9 * _IMAGE_CHANNELS, widths[0], positions[0])
    tally.linear(9 * widths[last], 2 * LATENT_CHANNELS, positions[last])
    tally.linear(9 * LATENT_CHANNELS, widths[last], positions[last])
    tally.linear(9 * widths[0], _IMAGE_CHANNELS, positions[0])
    for _half in range(2):
        tally.residual(widths[last], widths[last], positions[last], 0)
        tally.linear(4 * widths[last], widths[last], positions[last])
        tally.macs += 2 * widths[last] * positions[last] ** 2
        tally.residual(widths[last], widths[last], positions[last], 0)
    for level, width in enumerate(widths):
        after = widths[min(level + 1, last)]
        for layer in range(layers):
            tally.residual(width if layer else widths[max(level - 1, 0)], width, positions[level], 0)
        for layer in range(layers + 1):
            tally.residual(width if layer else after, width, positions[level], 0)
        if level < last:
            tally.linear(9 * width, width, positions[level + 1])
        if level > 0:
            tally.linear(9 * width, width, positions[level - 1])
    return tally


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
    return Sizes(forward, values + vae.weights, LATENT_CHANNELS * side**2, _cost(vae))


def _text_to_image(config: Mapping[str, Any], resolution: int) -> Sizes:
    layers, text, length = config.get("layers", 1), config["text_width"], config.get("length", 77)
    side = latent_side(config["autoencoder"], resolution)
    unet = unet_tally(config["unet"], layers, side, text, length)
    # 150: rows for the tokens of a local tokenizer, biases and norms, roughly
    encoder = 12 * text**2 * config.get("text_depth", 2) + (length + 150) * text
    vae = autoencoder_tally(config["autoencoder"], layers, resolution)
    return Sizes(_cost(unet), unet.weights + vae.weights + encoder, LATENT_CHANNELS * side**2, _cost(vae))


def _cost(tally: Tally) -> Cost:
    return Cost(2.0 * tally.macs, float(_BYTES_PER_VALUE * tally.accesses))


SIZED: dict[str, Callable[[Mapping[str, Any], int], Sizes]] = {"dit": _dit, "text-to-image": _text_to_image}
"""By family, of models that are trained here, from their sizes and resolution; families that are not listed count as
free."""


def sizes_of(recipe: BackboneRecipe) -> Sizes:
    """Sizes of a backbone; zero for a family that is not listed."""
    if recipe.imported:
        return PUBLISHED.get(recipe.family, Sizes())
    sized = SIZED.get(recipe.family)
    return sized(recipe.config, recipe.resolution) if sized is not None else Sizes()
