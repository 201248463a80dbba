"""D4M: images of a text-to-image model that start from prototypes of the real images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.diffusion.derivation import Derive
from rd3.diffusion.derivations.prototypes import PrototypesSettings, clusters_for, prototypes_of
from rd3.diffusion.prompts import NEGATIVE
from rd3.errors import BadValue
from rd3.lazy import torch
from rd3.methods import Block, Context, Needs, Settings, register_method
from rd3.methods._diffusion import DiffusionMethod, sampled
from rd3.methods._prompts import class_prompts

if TYPE_CHECKING:
    from rd3.diffusion.sampler import Conditions


class D4MSettings(Settings):
    """Settings as in ``gen_prototype.py``, ``gen_syn_image.py`` and the launch scripts of the released code."""

    backbone: str = "text-to-image"
    """Role of the text-to-image model."""
    clusters: int | None = Field(default=None, ge=1)
    """Prototypes per class; None uses IPC.  A smaller number that divides IPC starts several images from each."""
    expand: int = Field(default=10, ge=1)
    """Latents in a mini-batch of the k-means, as a multiple of ``clusters``."""
    prompts: tuple[str, ...] | None = None
    """Prompt of each class, in label order; None uses the class names."""
    negative_prompt: str = NEGATIVE
    """Prompt from which guidance leads away."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Steps of the model's own scheduler, of which the last ``strength * steps`` are run."""
    strength: float = Field(default=0.7, gt=0, le=1)
    """Noise added to the prototypes (image-to-image strength): 1 leaves almost pure noise and runs all steps."""
    guidance: float = Field(default=8.0, ge=0)
    """Scale of classifier-free guidance; 1 is the conditional model."""


_IMAGENET = {"expand": 1, "source": "suduo94/D4M distillation/gen_prototype_imgnt.sh, gen_syn_image_imgnt.sh"}


@register_method("d4m", version=1)
class D4M(DiffusionMethod):
    """Image-to-image samples of a text-to-image model from the centres of k-means clusters.

    Prototypes (a step of its own): all training images are encoded by the model's VAE, and mini-batch k-means with IPC
    clusters runs in the latents of each class.  Image k of a class starts from centre k with the noise of 70 % of 50
    steps and is sampled with the class name as the prompt, guidance 8 and a negative prompt.  No teacher is used before
    the labels.  A smaller set is not the beginning of a larger one, as its clusters differ.

    Source: Su et al., "D4M: Dataset Distillation via Disentangled Diffusion Model", CVPR 2024; suduo94/D4M
    ``distillation/gen_prototype.py``, ``distillation/gen_syn_image.py``, ``distillation/*_imgnt.sh``.

    Deviations: every class uses all its images, see the derivation ``prototypes``; prompts are the dataset's class
    names (published for ImageNet: full synset strings; for CIFAR-100: a list in another order than the labels);
    training images are the dataset's own resized and cropped ones, brought to the model's resolution; images are
    resized to the dataset's resolution (the released script always writes 224 pixels); no safety checker turns images
    black; noise is keyed by class and image, where the authors leave the seed open; unless Stable Diffusion 1.5 is
    imported the backbone is a small local model, for which the method was not published.
    """

    Settings = D4MSettings
    counted = ("steps",)
    quick = {"steps": 4}
    presets = {
        "imagenet1k": _IMAGENET,
        "imagenette": {**_IMAGENET, "nearest": True},
        "imagewoof": {**_IMAGENET, "nearest": True},
        "default": {
            "source": "suduo94/D4M distillation/gen_prototype.py, gen_syn_image.py; no script for this dataset"
        },
    }

    def needs(self, info: DatasetInfo, settings: D4MSettings, teacher: str) -> Needs:
        # 1 while a grid is checked, before the IPC is known.
        clustering = PrototypesSettings(clusters=settings.clusters or 1, expand=settings.expand)
        return Needs(backbones=(settings.backbone,), derived=(Derive("prototypes", clustering),))

    def resolve_size(self, settings: D4MSettings, info: DatasetInfo, ipc: int) -> D4MSettings:
        clusters = clusters_for("d4m", ipc, settings.clusters)
        return settings.model_copy(update={"clusters": clusters, "prompts": class_prompts(settings.prompts, info)})

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        from rd3.diffusion.families.text_to_image import TextToImage

        settings: D4MSettings = ctx.settings
        [model], [folder] = ctx.backbones, ctx.derived
        if not isinstance(model, TextToImage):
            raise BadValue(
                f"D4M samples from a text-to-image model, and this backbone is a {model.family} model.",
                "name a backbone of family text-to-image",
            )
        prompts = class_prompts(settings.prompts, ctx.info)

        def conditions(labels: torch.Tensor) -> Conditions:
            return model.conditions_of([prompts[label] for label in labels.tolist()], settings.negative_prompt)

        start = partial(prototypes_of, folder)
        return sampled(block, ctx, model, conditions=conditions, start=start, strength=settings.strength)

    def steps_run(self, settings: D4MSettings) -> int:
        # PNDM, the scheduler of Stable Diffusion 1.5 and of local models, has one timestep more than ``steps``.
        return int(settings.steps * settings.strength) + 1
