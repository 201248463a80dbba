"""The small autoencoder of a latent diffusion model that is trained here: how it is made and trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from rd3.diffusion.backbone import Stage, wrong_size
from rd3.diffusion.codec import Autoencoder
from rd3.diffusion.cost import LATENT_CHANNELS
from rd3.diffusion.inputs import batches_in_order, pixel_inputs
from rd3.errors import BadValue
from rd3.recipe import BackboneRecipe
from rd3.seeding import generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from rd3.teacher.training import Images

GROUPS = 8
"""Groups of the group norms of a local model; its channels are multiples of it."""
KL_WEIGHT = 1e-4
"""Weight of the KL term against the squared error, both summed over an image."""
SCALED_FROM = 2048
"""Number of training images from whose latents the scaling factor is computed."""


def make_autoencoder(widths: Sequence[int], layers: int, resolution: int) -> AutoencoderKL:
    """An autoencoder of four latent channels with ``widths`` channels in its levels, each but the first halving.

    Draws from torch's global generator.
    """
    from diffusers import AutoencoderKL

    levels = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=resolution,
        scaling_factor=1.0,
    )


def check_widths(family: str, name: str, widths: Sequence[int], resolution: int, halvings: int) -> None:
    """Raise :class:`BadValue` for channels that the group norms cannot divide, or too many levels.

    ``name``: that of the size; ``halvings``: how often images are halved on their way to the last level.
    """
    for width in widths:
        if width % GROUPS:
            raise wrong_size(family, name, f"{width} is not a multiple of {GROUPS}")
    if resolution % 2**halvings:
        raise wrong_size(family, name, f"{resolution} pixels cannot be halved {halvings} times", "use fewer levels")


def autoencoder_stage(codec: Autoencoder, recipe: BackboneRecipe) -> Stage:
    """The training of a model's autoencoder, before that of its denoiser.

    Loss: mean squared error of reconstructions, in pixels of [-1, 1], and the KL term with a small weight.  After it,
    the scaling factor is set so that the latents of the first training images have standard deviation 1.
    """
    if recipe.autoencoder is None:
        raise BadValue(
            f"Backbone {recipe.key[:12]} has no settings for training its autoencoder.", "state `autoencoder`"
        )
    vae, training = codec.vae, recipe.autoencoder

    def loss(images: torch.Tensor, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        posterior = codec.posterior(images)
        noise = torch.randn(posterior.mean.shape, generator=stream).to(images.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        divergence = posterior.kl().float().mean() / images[0].numel()
        total: torch.Tensor = (decoded - (images * 2 - 1)).square().mean() + KL_WEIGHT * divergence
        return total

    @torch.no_grad()
    def rescale(images: Images) -> None:
        vae.register_to_config(scaling_factor=1.0)
        stream = generator(recipe.seed or 0, "autoencoder", "scaling")
        batches = batches_in_order(images, min(len(images.labels), SCALED_FROM), 64)
        latents = torch.cat([codec.encode(batch, [stream] * len(batch)).cpu() for batch in batches])
        vae.register_to_config(scaling_factor=1 / float(latents.double().std()))

    return Stage("autoencoder", nn.ModuleList([vae]), loss, training, pixel_inputs, rescale)
