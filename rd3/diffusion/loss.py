"""The loss of diffusion models with learned variances: squared error of the noise, and the variational bound.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models"; Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", equations 15 and 16; facebookresearch/DiT ``diffusion/gaussian_diffusion.py`` (loss type MSE with
learned range, the bound not rescaled).
"""

from __future__ import annotations

import math

import torch

TIMES = 1000
"""Number of timesteps."""
SMALLEST = 1e-12
"""Least probability of which a logarithm is taken."""


class Noising:
    """The forward (noising) process of DDPM and DiT: constants by timestep, (1000,) float64 on a device.

    ``alpha_bar`` is the cumulative product of 1 - beta, ``alpha_bar_prev`` the same one time earlier, 1 at time 0.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.beta = torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64, device=device)
        self.alpha_bar = (1 - self.beta).cumprod(0)
        self.alpha_bar_prev = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, h, w) of x_0 and noise, at times ``t`` (B,) int64."""
        return _at(self.alpha_bar.sqrt(), t, clean) * clean + _at((1 - self.alpha_bar).sqrt(), t, clean) * noise

    def cleaned(self, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_0 (B, C, h, w) of x_t and its (predicted) noise."""
        return (
            _at(1 / self.alpha_bar.sqrt(), t, latents) * latents
            - _at((1 / self.alpha_bar - 1).sqrt(), t, latents) * noise
        )

    def posterior_mean(self, clean: torch.Tensor, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        of_clean = self.beta * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)
        of_latents = (1 - self.alpha_bar_prev) * (1 - self.beta).sqrt() / (1 - self.alpha_bar)
        return _at(of_clean, t, clean) * clean + _at(of_latents, t, clean) * latents

    @property
    def posterior_log_variance(self) -> torch.Tensor:
        """Log of the variance of q(x_{t-1} | x_t, x_0); at time 0, where it is 0, that of time 1."""
        variance = self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        return torch.cat([variance[1:2], variance[1:]]).log()


def _at(values: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values[t]`` as (B, 1, 1, 1), in the type of ``like``."""
    return values[t].to(like.dtype).view(-1, 1, 1, 1)


def squared_error(output: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """(B,): mean squared error of the predicted noise, the first half of ``output`` (B, 2C, h, w)."""
    return (output[:, : noise.shape[1]] - noise).square().flatten(1).mean(1)


def variational_bound(
    output: torch.Tensor, clean: torch.Tensor, latents: torch.Tensor, t: torch.Tensor, noising: Noising
) -> torch.Tensor:
    """(B,): the bound's term at times ``t`` in bits per dimension, for the variances alone.

    ``output`` (B, 2C, h, w): predicted noise, through which no gradient flows, and the position of the log variance
    between those of the posterior (-1) and of beta (1).  The term is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and
    at time 0 the negative log likelihood of x_0 in bins of 2/255.
    """
    noise, position = output.chunk(2, dim=1)
    low, high = _at(noising.posterior_log_variance, t, clean), _at(noising.beta.log(), t, clean)
    share = (position + 1) / 2
    log_variance = share * high + (1 - share) * low
    predicted = noising.posterior_mean(noising.cleaned(latents, noise.detach(), t), latents, t)
    true = noising.posterior_mean(clean, latents, t)
    kl = gaussian_kl(true, low, predicted, log_variance)
    likelihood = -binned_log_likelihood(clean, predicted, 0.5 * log_variance)
    bits = torch.where((t == 0).view(-1, 1, 1, 1), likelihood, kl) / math.log(2)
    return bits.flatten(1).mean(1)


def gaussian_kl(
    mean: torch.Tensor, log_variance: torch.Tensor, other: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL divergence of N(mean, variance) from N(other, other variance), elementwise, in nats."""
    return 0.5 * (
        other_log_variance
        - log_variance
        - 1
        + (log_variance - other_log_variance).exp()
        + (mean - other).square() * (-other_log_variance).exp()
    )


def binned_log_likelihood(values: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log of the mass that N(mean, std) has in the bin of width 2/255 around each value of [-1, 1], elementwise.

    The outermost bins are open.  Uses the approximation by tanh of the normal distribution function, as the source.
    """
    scaled = (-log_std).exp()
    above = _normal_cdf(scaled * (values - mean + 1 / 255))
    below = _normal_cdf(scaled * (values - mean - 1 / 255))
    inner = (above - below).clamp(min=SMALLEST).log()
    lowest, highest = above.clamp(min=SMALLEST).log(), (1 - below).clamp(min=SMALLEST).log()
    return torch.where(values < -0.999, lowest, torch.where(values > 0.999, highest, inner))


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
