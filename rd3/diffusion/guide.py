"""What a training-free method does at every step of the sampler; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rd3.lazy import torch

Member = tuple[int, int]
"""(label, k): the k-th image of a class."""


@dataclass(frozen=True)
class Step:
    """One step of the sampler, for a batch of images."""

    number: int
    """0 is the first, the noisiest."""
    count: int
    """Number of steps of the whole loop."""
    t: int
    """Timestep of the model (0-999)."""
    latents: torch.Tensor
    """(B, C, h, w): x_t, before the step."""
    clean: torch.Tensor
    """(B, C, h, w): the prediction of x_0."""
    following: torch.Tensor
    """(B, C, h, w): x_{t-1} as the scheduler computes it, with its noise."""
    noise_std: torch.Tensor | float
    """Standard deviation of the noise in ``following``, elementwise; 0 for deterministic schedulers."""
    members: Sequence[Member]
    """(label, k) of each image."""


class Guide:
    """Plain classifier-free guidance; methods override what they change."""

    def scale(self, number: int, count: int, scale: float) -> float:
        """Guidance scale of a step; ``scale`` is the one that the sampler was called with."""
        return scale

    def follow(self, step: Step) -> torch.Tensor:
        """(B, C, h, w): the latents that the next step starts from."""
        return step.following


PLAIN = Guide()
