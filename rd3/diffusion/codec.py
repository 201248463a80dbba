"""Codecs from images to the space in which a diffusion model works, its pixels or the latents of a VAE, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


class Codec(Protocol):
    """Maps images in [0, 1] to latents and back."""

    shape: tuple[int, int, int]
    """(C, h, w) of one latent."""

    def encode(self, images: torch.Tensor, streams: Sequence[torch.Generator]) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] to (B, C, h, w); ``streams``: a generator for each image, for codecs that sample."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to (B, 3, R, R) in [0, 1]; R is the resolution of the model."""


class Pixels:
    """No compression: latents are pixels in [-1, 1]."""

    def __init__(self, resolution: int):
        self.shape = (3, resolution, resolution)

    def encode(self, images: torch.Tensor, streams: Sequence[torch.Generator]) -> torch.Tensor:
        return resized(images, self.shape[-1]) * 2 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents / 2 + 0.5).clamp(0, 1)


class Autoencoder:
    """Latents of a VAE, sampled from its posterior and multiplied by its scaling factor."""

    def __init__(self, vae: AutoencoderKL, side: int):
        """``side``: height and width of the latents."""
        self.vae = vae
        self.shape = (vae.config.latent_channels, side, side)
        self.resolution = side * 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(self, images: torch.Tensor, streams: Sequence[torch.Generator]) -> torch.Tensor:
        latents: torch.Tensor = self.posterior(images).sample(list(streams)) * self.vae.config.scaling_factor
        return latents

    def posterior(self, images: torch.Tensor) -> DiagonalGaussianDistribution:
        """The distribution of the latents of images in [0, 1], before scaling."""
        return self.vae.encode(resized(images, self.resolution) * 2 - 1).latent_dist

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 3, side, side), bilinear with antialiasing; unchanged if that is their size."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


def to_size(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, R, R) in [0, 1] to (B, 3, side, side) uint8; rounded before and after resizing, as picture files are."""
    from torchvision.transforms.v2 import functional as transforms

    whole: torch.Tensor = images.mul(255).round().clamp(0, 255).byte()
    if whole.shape[-1] == side:
        return whole
    bicubic = transforms.InterpolationMode.BICUBIC
    scaled: torch.Tensor = transforms.resize(whole, [side, side], interpolation=bicubic, antialias=True)
    return scaled
