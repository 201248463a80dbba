"""Means and variances of a batch's maps, differentiable, with explicit gradients, which are faster than torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rd3.layer_statistics import resized_to_tiles, spread_tiles, tile_means
from rd3.models._matched import Moments


class _ChannelMoments(torch.autograd.Function):
    """Forward takes one pass over the maps for sums and one for sums of squares, backward one more for the gradient.

    torch's ``var_mean`` takes ten times as long on a CPU, mean and centred squares four times.  The error of a variance
    is about ``eps (mean^2 + variance)``, which is negligible wherever BatchNorm is useful.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean, square = (means.unflatten(0, (batches, -1)).mean(1) for means in _image_means(maps))
        ctx.save_for_backward(maps, mean)
        return mean, square - mean.square()

    @staticmethod
    def backward(ctx: Any, grad_mean: torch.Tensor, grad_variance: torch.Tensor) -> tuple[torch.Tensor, None]:
        maps, mean = ctx.saved_tensors
        count = maps.numel() / mean.numel()  # values that a mean is over
        slope = 2 * grad_variance / count
        line = (grad_mean / count - slope * mean, slope)
        batch_size = len(maps) // len(mean)
        offset, slope = (values.repeat_interleave(batch_size, 0)[:, :, None, None] for values in line)
        return torch.addcmul(offset, maps, slope), None


channel_moments: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] = _ChannelMoments.apply
"""(G * B, C, H, W), G -> channel means and biased variances, (G, C) each, of G batches side by side."""


def _image_means(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of each channel of each image (N, C, H, W), and means of its squares: (N, C) each."""
    pixels = maps.flatten(2)
    if maps.device.type != "cpu":
        return pixels.mean(2), torch.linalg.vector_norm(pixels, dim=2).square() / pixels.shape[2]
    # A matrix product of a row with itself is the fastest sum of squares on a CPU.
    rows = pixels.reshape(-1, 1, pixels.shape[2])
    return pixels.mean(2), torch.bmm(rows, rows.mT).view(pixels.shape[:2]) / pixels.shape[2]


class _TileMoments(torch.autograd.Function):
    """(B, D, H, W) -> means (T,) and biased variances (T,) of tiles, over images and channels.

    Sides are multiples of ``patch``.  torch's gradient for ``var_mean`` over tiles takes five times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean = tile_means(maps.mean((0, 1)), patch)
        centred = maps - spread_tiles(mean, patch, *maps.shape[-2:])
        ctx.save_for_backward(centred)
        ctx.patch = patch
        return mean, tile_means(centred.square().mean((0, 1)), patch)

    @staticmethod
    def backward(ctx: Any, grad_mean: torch.Tensor, grad_variance: torch.Tensor) -> tuple[torch.Tensor, None]:
        (centred,) = ctx.saved_tensors
        count = centred.shape[0] * centred.shape[1] * ctx.patch**2
        slope, offset = (
            spread_tiles(values / count, ctx.patch, *centred.shape[-2:]) for values in (2 * grad_variance, grad_mean)
        )
        return torch.addcmul(offset, centred, slope), None


_tile_moments: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] = _TileMoments.apply


def moments_of_batch(maps: torch.Tensor, patch: int | None) -> Moments:
    """(B, D, H, W) -> (D,) and (T,): the moments of a whole batch; no tiles without ``patch``."""
    mean, var = (values[0] for values in channel_moments(maps, 1))
    if patch is None:
        return Moments(mean, var)
    return Moments(mean, var, *_tile_moments(resized_to_tiles(maps, patch), patch))
