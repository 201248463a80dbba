"""One sampler for all diffusion methods: classifier-free guidance, noise per image, and a guide at every step.

The loop follows the pipelines of diffusers, whose schedulers it uses.  Each image has a random stream of its own, so
that it is the same image, up to rounding, in any batch.  A :class:`Guide` sees every step and may change the strength
of the guidance or the next latents, which is all that training-free methods such as MGD3 or IGD need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rd3.diffusion.guide import PLAIN, Guide, Member, Step
from rd3.errors import BadValue

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone


class Conditions(NamedTuple):
    """What a batch is conditioned on, image by image."""

    given: torch.Tensor
    """(B, ...): rows of the class embedding, or embedded prompts."""
    null: torch.Tensor | None
    """(B, ...): the same for the unconditional prediction; None if the model has none."""


@torch.no_grad()
def sample(
    backbone: Backbone,
    scheduler: Any,
    conditions: Conditions,
    streams: Sequence[torch.Generator],
    members: Sequence[Member],
    *,
    steps: int,
    guidance: float,
    start: torch.Tensor | None = None,
    strength: float = 1.0,
    guide: Guide = PLAIN,
    progress: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """Latents (B, C, h, w) of a batch of images.

    ``scheduler`` is one of ``backbone.scheduler``, used by this call alone.  ``streams`` are CPU generators, one for
    each image; ``members`` are passed on to ``guide``.  With ``start``, (B, C, h, w), only the last
    ``strength * steps`` steps run, from these latents with the noise of the first of them (image-to-image); otherwise
    all steps, from noise.  Raises :class:`BadValue` for guidance without an unconditional model, and for a strength
    that runs no step.
    """
    scheduler.set_timesteps(steps, device=backbone.device)
    times = scheduler.timesteps
    latents: torch.Tensor
    noise = torch.stack([torch.randn(backbone.shape, generator=stream) for stream in streams]).to(backbone.device)
    if start is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        first = (steps - min(int(steps * strength), steps)) * scheduler.order
        times = times[first:]
        if not len(times):
            raise BadValue(f"Strength {strength:g} runs none of {steps} steps.", "raise strength, or steps")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        latents = scheduler.add_noise(start.to(backbone.device), noise, times[:1].expand(len(start)))
    for number, t in enumerate(times):
        scale = guide.scale(number, len(times), guidance)
        output = guided(backbone, scheduler.scale_model_input(latents, t), t, conditions, scale)
        following = _previous_sample(scheduler, output, t, latents, streams)
        if guide is not PLAIN:
            step = Step(
                number, len(times), int(t), latents, clean(scheduler, output, t, latents), following,
                noise_std(scheduler, output, t), members,
            )  # fmt: skip
            following = guide.follow(step)
        latents = following
        progress((number + 1) / len(times))
    return latents


def guided(
    backbone: Backbone, latents: torch.Tensor, t: torch.Tensor, conditions: Conditions, scale: float
) -> torch.Tensor:
    """The model's output (B, C or 2C, h, w) with classifier-free guidance, in one batch of 2B.

    ``scale`` 1 is the conditional model.  Only the model's guided channels are guided; the others, and predicted
    variances, are those of the conditional model.  Raises :class:`BadValue` if the model has no unconditional input.
    """
    times = t.expand(len(latents))
    if scale == 1:
        return backbone.denoise(latents, times, conditions.given)
    if conditions.null is None:
        raise BadValue(
            f"Guidance {scale:g} needs a model that was trained without classes as well; this one was not.",
            "use guidance 1 or a model that was trained with dropout of the classes",
        )
    output = backbone.denoise(
        torch.cat([latents, latents]), torch.cat([times, times]), torch.cat([conditions.given, conditions.null])
    )
    with_class, without = output.chunk(2)
    channels, rest = backbone.guided_channels, with_class[:, backbone.guided_channels :]
    towards = without[:, :channels] + scale * (with_class[:, :channels] - without[:, :channels])
    return torch.cat([towards, rest], dim=1)


def clean(scheduler: Any, output: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w): the prediction of x_0 in a model's output at time ``t``."""
    predicted = output[:, : latents.shape[1]]
    alpha_bar: torch.Tensor = scheduler.alphas_cumprod.to(latents.device)[t]
    if scheduler.config.prediction_type == "v_prediction":
        return alpha_bar.sqrt() * latents - (1 - alpha_bar).sqrt() * predicted
    return (latents - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()


def noise_std(scheduler: Any, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor | float:
    """Standard deviation of the noise that the scheduler adds in the step from ``t``; 0 if it adds none.

    DDPM with a learned range: between those of the posterior and of beta, on a logarithmic scale (Nichol and Dhariwal,
    "Improved Denoising Diffusion Probabilistic Models", equation 15).
    """
    if not _adds_noise(scheduler) or t == 0:
        return 0.0
    alpha_bar: torch.Tensor = scheduler.alphas_cumprod[t]
    earlier = scheduler.previous_timestep(t)
    before: torch.Tensor = scheduler.alphas_cumprod[earlier] if earlier >= 0 else torch.tensor(1.0)
    beta = 1 - alpha_bar / before
    posterior = (1 - before) / (1 - alpha_bar) * beta
    if not _has_learned_range(scheduler):
        return float(posterior.clamp(min=1e-20).sqrt())
    share = (output[:, output.shape[1] // 2 :] + 1) / 2
    log_variance = share * beta.log() + (1 - share) * posterior.clamp(min=1e-20).log()
    return (0.5 * log_variance).exp()


def _previous_sample(
    scheduler: Any, output: torch.Tensor, t: torch.Tensor, latents: torch.Tensor, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    """x_{t-1}; predicted variances are passed only to a scheduler that uses them."""
    if not _has_learned_range(scheduler):
        output = output[:, : latents.shape[1]]
    drawn = {"generator": list(streams)} if _adds_noise(scheduler) else {}
    following: torch.Tensor = scheduler.step(output, t, latents, **drawn).prev_sample
    return following


def _has_learned_range(scheduler: Any) -> bool:
    return bool(scheduler.config.get("variance_type") == "learned_range")


def _adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler adds noise at its steps: DDPM, which alone of a backbone's schedulers has this field."""
    return "variance_type" in scheduler.config
