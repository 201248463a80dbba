"""Minimax Diffusion: images from a diffusion transformer fine-tuned for representativeness and diversity."""

from __future__ import annotations

from typing import Any

import pydantic

from rd3.datasets import DatasetInfo
from rd3.diffusion.derivation import Derive
from rd3.diffusion.derivations.minimax import FILE, MinimaxTuning
from rd3.lazy import torch
from rd3.methods import Block, Context, Needs, Settings, register_method
from rd3.methods._diffusion import DiffusionMethod, sampled


class MinimaxSettings(MinimaxTuning, Settings):
    """Settings of the fine-tuning, as published, and of the sampling."""

    backbone: str = "dit"
    """Role of the diffusion transformer."""
    steps: int = pydantic.Field(default=50, ge=1, le=1000)
    """Steps of DDPM, evenly spaced over the model's 1000 timesteps."""
    guidance: float = pydantic.Field(default=4.0, ge=0)
    """Scale of classifier-free guidance; 1 is the conditional model."""


@register_method("minimax", version=1)
class Minimax(DiffusionMethod):
    """Samples of a class-conditional diffusion transformer after a short fine-tuning with two minimax terms.

    Fine-tuning (a step of its own, shared by all IPC) trains biases, class embeddings and inserted scales on the loss
    of the diffusion model and two terms on its prediction of x_0: representativeness, 1 minus the smallest cosine to
    the real latents in the class's memory, and diversity, the largest cosine to its earlier predictions.  Sampling: 50
    steps of DDPM with learned variances and classifier-free guidance on the first three channels, from the averaged
    weights.  A smaller set is the beginning of a larger one.

    Source: Gu et al., "Efficient Dataset Distillation via Minimax Diffusion", CVPR 2024; vimar-gu/MinimaxDiffusion
    ``train_dit.py``, ``sample.py``, ``run.sh``.

    Deviations: weights are those of the last step (published: step 12,000 of about 12,450); training images are the
    dataset's own resized ones, brought to the model's resolution, not ADM's crops of the files; one VAE, that of the
    backbone, for encoding and decoding (published: two variants); noise is keyed by class and image, where the authors
    draw one stream with batch 1; on datasets whose classes are not ImageNet's the backbone is a small local model, for
    which the method was not published.
    """

    Settings = MinimaxSettings
    counted = ("epochs", "steps")
    quick = {"epochs": 1, "batch_size": 256, "steps": 3}
    presets = {
        "imagenette": {"source": "vimar-gu/MinimaxDiffusion run.sh"},
        "imagewoof": {"source": "vimar-gu/MinimaxDiffusion run.sh"},
        "default": {"source": "vimar-gu/MinimaxDiffusion run.sh, for the ten-class subsets of ImageNet"},
    }

    def needs(self, info: DatasetInfo, settings: MinimaxSettings, teacher: str) -> Needs:
        tuning = MinimaxTuning.model_validate(settings.model_dump(include=set(MinimaxTuning.model_fields)))
        return Needs(backbones=(settings.backbone,), derived=(Derive("minimax", tuning),))

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        return True

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        model: Any = ctx.backbones[0]
        if "tuned" not in ctx.shared:  # the backbone is loaded for this set alone, its fine-tuned weights once
            from safetensors.torch import load_file

            model.transformer.load_state_dict(load_file(ctx.derived[0] / FILE), strict=False)  # those that changed
            ctx.shared["tuned"] = True
        return sampled(block, ctx, model)
