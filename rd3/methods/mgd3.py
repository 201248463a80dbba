"""MGD3: images of a diffusion transformer that are guided towards the modes of the real images."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.diffusion.derivation import Derive
from rd3.diffusion.derivations.prototypes import PrototypesSettings, clusters_for, prototypes_of
from rd3.diffusion.guide import Guide, Member, Step
from rd3.errors import BadValue
from rd3.lazy import torch
from rd3.methods import Block, Context, Needs, Settings, register_method
from rd3.methods._diffusion import DiffusionMethod, sampled


class MGD3Settings(Settings):
    """Settings of modes, guidance and sampling."""

    backbone: str = "dit"
    """Role of the diffusion transformer."""
    clusters: int | None = Field(default=None, ge=1)
    """Modes per class; None uses IPC.  A smaller number that divides IPC guides several images to each."""
    mode_scale: float = Field(default=0.1, ge=0)
    """Weight of the pull of the predicted image towards its mode."""
    stop: int = Field(default=25, ge=-1)
    """Number of steps left after this one, at and below which a step is not guided; -1 guides every step."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Steps of DDPM, evenly spaced over the model's 1000 timesteps."""
    guidance: float = Field(default=4.0, ge=0)
    """Scale of classifier-free guidance; 1 is the conditional model."""


class ModeGuide(Guide):
    """Adds ``scale * (mode - predicted x_0) * sigma_t`` to x_{t-1} in the steps before ``stop``."""

    def __init__(self, modes: torch.Tensor, scale: float, stop: int):
        """``modes`` (B, C, h, w): one for each image of the batch."""
        self.modes, self.mode_scale, self.stop = modes, scale, stop

    def follow(self, step: Step) -> torch.Tensor:
        if step.count - 1 - step.number <= self.stop:
            return step.following
        pull = self.modes.to(step.clean) - step.clean
        return step.following + self.mode_scale * pull * step.noise_std


@register_method("mgd3", version=1)
class MGD3(DiffusionMethod):
    """Samples of a class-conditional diffusion transformer, each guided to a mode of its class.

    Modes (a step of its own): k-means with IPC clusters in the latents of each class.  In the first, noisy half of the
    steps the latents of image k move from the prediction of x_0 towards mode k, in proportion to the noise of the step;
    the other half is plain sampling.  The model is not trained.  A smaller set is not the beginning of a larger one, as
    its modes differ.

    Source: Chan-Santiago et al., "MGD3: Mode-Guided Dataset Distillation using Diffusion Models", ICML 2025; options of
    its ``sample_mode_guidance.py`` (scale 0.1, guidance 4, 50 steps, scikit-learn's k-means with seed 0), and
    ``stop_t`` 25 of its scripts for ImageNet-1K, ImageNette and ImageWoof, as public copies of both have them.

    Deviations: noise is keyed by class and image; on datasets whose classes are not ImageNet's the backbone is a small
    local model, for which the method was not published.
    """

    Settings = MGD3Settings
    counted = ("steps",)
    quick = {"steps": 4, "stop": 1}
    presets = {
        "default": {"source": "the options of its released scripts, for ImageNet and its subsets", "nearest": True}
    }

    def needs(self, info: DatasetInfo, settings: MGD3Settings, teacher: str) -> Needs:
        # 1 while a grid is checked, before the IPC is known.
        clustering = PrototypesSettings(clusters=settings.clusters or 1, algorithm="kmeans")
        return Needs(backbones=(settings.backbone,), derived=(Derive("prototypes", clustering),))

    def resolve_size(self, settings: MGD3Settings, info: DatasetInfo, ipc: int) -> MGD3Settings:
        if settings.mode_scale and settings.stop >= settings.steps - 1:
            raise BadValue(
                f"Method mgd3, setting stop: at {settings.stop}, none of {settings.steps} steps is guided by modes.",
                f"use {settings.steps // 2 - 1}, so that half of the steps are, or mode_scale 0",
            )
        return settings.model_copy(update={"clusters": clusters_for("mgd3", ipc, settings.clusters)})

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        settings: MGD3Settings = ctx.settings
        [model], [folder] = ctx.backbones, ctx.derived

        def guide(members: Sequence[Member]) -> Guide:
            return ModeGuide(prototypes_of(folder, members), settings.mode_scale, settings.stop)

        return sampled(block, ctx, model, scheduler="ddpm", guide=guide)
