"""The variational bound against the normal distribution of scipy, numerical integration and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rd3.diffusion.loss import Noising, binned_log_likelihood, gaussian_kl, squared_error, variational_bound


def case(t: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(output, clean, latents, t) of one image of 2 channels and 2 x 2 pixels, in double precision."""
    stream = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(1, 2, 2, 2, generator=stream, dtype=torch.float64) for _ in range(2))
    output = torch.cat([noise + 0.1, torch.rand(1, 2, 2, 2, generator=stream, dtype=torch.float64) * 2 - 1], dim=1)
    at = torch.tensor([t])
    return output, clean, Noising().noised(clean, noise, at), at


def posterior(noising: Noising, t: int, clean: float, latent: float) -> tuple[float, float]:
    """Mean and variance of q(x_{t-1} | x_t, x_0): by Bayes' rule, from q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    alpha, before = float(1 - noising.beta[t]), float(noising.alpha_bar_prev[t])
    precision = alpha / (1 - alpha) + 1 / (1 - before)
    mean = (math.sqrt(alpha) * latent / (1 - alpha) + math.sqrt(before) * clean / (1 - before)) / precision
    return mean, 1 / precision


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_the_posterior_is_that_of_bayes_rule(t: int):
    noising = Noising()
    clean, latent = torch.tensor([[[[0.3]]]], dtype=torch.float64), torch.tensor([[[[-1.2]]]], dtype=torch.float64)
    mean, variance = posterior(noising, t, 0.3, -1.2)
    assert float(noising.posterior_mean(clean, latent, torch.tensor([t]))) == pytest.approx(mean, rel=1e-9)
    assert float(noising.posterior_log_variance[t].exp()) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("t", [1, 300, 999])
def test_the_bound_is_the_kl_divergence_by_numerical_integration(t: int):
    output, clean, latents, at = case(t)
    noising = Noising()
    found = float(variational_bound(output, clean, latents, at, noising))
    alpha_bar, beta = float(noising.alpha_bar[t]), float(noising.beta[t])
    terms = []
    for noise, position, x0, xt in zip(
        output[0, :2].flatten(), output[0, 2:].flatten(), clean.flatten(), latents.flatten(), strict=True
    ):
        mean, variance = posterior(noising, t, float(x0), float(xt))
        predicted = (float(xt) - math.sqrt(1 - alpha_bar) * float(noise)) / math.sqrt(alpha_bar)
        other, _same = posterior(noising, t, predicted, float(xt))
        share = (float(position) + 1) / 2
        std = math.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(variance)))
        p, q = stats.norm(mean, math.sqrt(variance)), stats.norm(other, std)
        wide = 12 * math.sqrt(variance)
        value, _error = integrate.quad(
            lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - wide, mean + wide, limit=200
        )
        terms.append(value / math.log(2))
    assert found == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_kl_divergence_of_equal_normals_is_zero_and_grows_with_their_distance():
    mean = torch.tensor([0.0, 1.0])
    assert gaussian_kl(mean, torch.zeros(2), mean, torch.zeros(2)).tolist() == [0, 0]
    assert float(gaussian_kl(mean[0], torch.zeros(()), mean[1], torch.zeros(()))) == pytest.approx(0.5)


def test_bins_have_the_mass_of_the_normal_distribution_and_sum_to_one():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    mean, std = 0.2, 0.07
    found = binned_log_likelihood(values, torch.tensor(mean).double(), torch.tensor(math.log(std)).double()).exp()
    edges = stats.norm(mean, std).cdf((values[:-1] + 1 / 255).numpy())
    expected = np.diff(np.concatenate([[0.0], edges, [1.0]]))
    assert found.numpy() == pytest.approx(expected, abs=1e-4)
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)


def test_at_time_0_the_bound_is_the_likelihood_of_the_image():
    output, clean, latents, at = case(0)
    noising = Noising()
    clean = clean.clamp(-1, 1)
    predicted = noising.posterior_mean(noising.cleaned(latents, output[:, :2], at), latents, at)
    share = (output[:, 2:] + 1) / 2
    log_std = 0.5 * (share * noising.beta[0].log() + (1 - share) * noising.posterior_log_variance[0])
    expected = -binned_log_likelihood(clean, predicted, log_std).mean() / math.log(2)
    assert torch.allclose(variational_bound(output, clean, latents, at, noising), expected)


@pytest.mark.parametrize("t", [0, 400])
def test_its_gradient_is_that_of_finite_differences_and_leaves_the_mean_alone(t: int):
    output, clean, latents, at = case(t)
    noising, clean = Noising(), clean.clamp(-0.9, 0.9)
    output.requires_grad_(True)
    [gradient] = torch.autograd.grad(variational_bound(output, clean, latents, at, noising).sum(), output)
    assert not gradient[:, :2].any(), "the noise is learned by the squared error alone"
    for index in range(8):
        step = torch.zeros(8, dtype=torch.float64)
        step[index] = 1e-5
        moved = torch.cat([torch.zeros(1, 2, 2, 2).double(), step.view(1, 2, 2, 2)], dim=1)
        above, below = (variational_bound(output + sign * moved, clean, latents, at, noising) for sign in (1, -1))
        slope = float((above - below).detach()) / 2e-5
        assert float(gradient[0, 2:].flatten()[index]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_noised_and_cleaned_are_inverse():
    _output, clean, _latents, at = case(700)
    noise = torch.randn_like(clean)
    noising = Noising()
    assert torch.allclose(noising.cleaned(noising.noised(clean, noise, at), noise, at), clean)


def test_the_squared_error_is_of_the_noise_alone():
    output, clean, _latents, _t = case(5)
    assert torch.allclose(squared_error(output, clean), ((output[:, :2] - clean) ** 2).mean(dim=(1, 2, 3)))
