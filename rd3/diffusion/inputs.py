"""The training images as the stages of a training take them: pixels, or latents that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from rd3.augment import horizontal_flip, to_unit
from rd3.diffusion.codec import Autoencoder

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Inputs
    from rd3.teacher.training import Images


def batches_in_order(images: Images, count: int, size: int) -> Iterator[torch.Tensor]:
    """The first ``count`` images as (``size``, 3, H, W) in [0, 1]; the last batch may be smaller."""
    for positions in torch.arange(count).split(size):
        yield to_unit(images.batch(positions)[0])


def pixel_inputs(images: Images, flip: bool) -> Inputs:
    """(B, 3, H, W) in [0, 1], with ``flip`` mirrored at random."""

    def draw(positions: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        pixels = to_unit(images.batch(positions)[0])
        return horizontal_flip(pixels, stream) if flip else pixels

    return draw


def latent_inputs(images: Images, flip: bool, *, codec: Autoencoder) -> Inputs:
    """Latents (B, C, h, w) of an autoencoder, drawn anew each time from the posteriors, which are computed once.

    With ``flip``, the posterior of the mirrored image is drawn from half of the time.
    """
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    parameters = _posterior_parameters(images, codec, mirrored=False)
    of_mirrored = _posterior_parameters(images, codec, mirrored=True) if flip else None

    def draw(positions: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        there = positions.to(parameters.device)
        chosen = parameters[there]
        if of_mirrored is not None:
            mirrored = (torch.rand(len(positions), generator=stream) < 0.5).to(there.device)
            chosen = torch.where(mirrored[:, None, None, None], of_mirrored[there], chosen)
        posterior = DiagonalGaussianDistribution(chosen)
        noise = torch.randn(posterior.mean.shape, generator=stream).to(there.device)
        latents: torch.Tensor = (posterior.mean + posterior.std * noise) * codec.vae.config.scaling_factor
        return latents

    return draw


@torch.no_grad()
def _posterior_parameters(images: Images, codec: Autoencoder, *, mirrored: bool) -> torch.Tensor:
    """(N, 2C, h, w): means and logarithms of the variances of all posteriors."""
    batches = batches_in_order(images, len(images.labels), 128)
    return torch.cat([codec.posterior(pixels.flip(3) if mirrored else pixels).parameters for pixels in batches])
