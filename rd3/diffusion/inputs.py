"""The training images as the stages of a training take them: pixels, or latents that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from rd3.augment import horizontal_flip, to_unit
from rd3.diffusion.codec import Autoencoder

if TYPE_CHECKING:
    from rd3.teacher.training import Images

_ENCODED = 128
"""Images that an autoencoder encodes at once."""


def batches_in_order(images: Images, count: int, size: int) -> Iterator[torch.Tensor]:
    """The first ``count`` images as (``size``, 3, H, W) in [0, 1]; the last batch may be smaller."""
    for positions in torch.arange(count).split(size):
        yield to_unit(images.batch(positions)[0])


class PixelInputs:
    """(B, 3, H, W) in [0, 1], with ``flip`` mirrored at random."""

    def __init__(self, images: Images, flip: bool):
        self._images, self._flip = images, flip

    def draw(self, positions: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        pixels = to_unit(self._images.batch(positions)[0])
        return horizontal_flip(pixels, stream) if self._flip else pixels


class LatentInputs:
    """Latents (B, C, h, w) of an autoencoder, drawn anew each time from the posteriors, which are computed once."""

    def __init__(self, images: Images, flip: bool, codec: Autoencoder):
        """With ``flip``, the posterior of the mirrored image is drawn from half of the time."""
        self._codec = codec
        self._moments = _moments(images, codec, mirrored=False)
        self._mirrored = _moments(images, codec, mirrored=True) if flip else None

    def draw(self, positions: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        there = positions.to(self._moments.device)
        moments = self._moments[there]
        if self._mirrored is not None:
            mirrored = (torch.rand(len(positions), generator=stream) < 0.5).to(there.device)
            moments = torch.where(mirrored[:, None, None, None], self._mirrored[there], moments)
        posterior = DiagonalGaussianDistribution(moments)
        noise = torch.randn(posterior.mean.shape, generator=stream).to(there.device)
        latents: torch.Tensor = (posterior.mean + posterior.std * noise) * self._codec.vae.config.scaling_factor
        return latents


@torch.no_grad()
def _moments(images: Images, codec: Autoencoder, *, mirrored: bool) -> torch.Tensor:
    """(N, 2C, h, w): means and logarithms of the variances of all posteriors."""
    batches = batches_in_order(images, len(images.labels), _ENCODED)
    return torch.cat([codec.posterior(pixels.flip(3) if mirrored else pixels).parameters for pixels in batches])
