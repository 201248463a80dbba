"""``text-to-image``: latent diffusion models that are conditioned on text, such as Stable Diffusion 1.5."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field
from torch import nn

from rd3.datasets import DatasetInfo
from rd3.diffusion.autoencoder import GROUPS, autoencoder_stage, check_widths, make_autoencoder
from rd3.diffusion.backbone import Backbone, Stage, parse_sizes, register_backbone, wrong_size
from rd3.diffusion.codec import Autoencoder
from rd3.diffusion.cost import LATENT_CHANNELS, latent_side
from rd3.diffusion.families.dit import draws
from rd3.diffusion.inputs import latent_inputs
from rd3.diffusion.prompts import NEGATIVE, local_tokenizer, token_ids
from rd3.diffusion.sampler import Conditions
from rd3.errors import BadValue
from rd3.recipe import BackboneRecipe
from rd3.seeding import scoped
from rd3.store import write_atomically
from rd3.values import Frozen

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion 1.5's PNDM."""
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}
"""Content of ``model_index.json``, with which diffusers' own pipelines open the folder."""


class TextToImageSizes(Frozen):
    """Sizes of a latent diffusion model that is trained here."""

    autoencoder: tuple[int, ...] = Field(min_length=1)
    """Channels of the autoencoder's levels; each but the first halves the side of its input."""
    unet: tuple[int, ...] = Field(min_length=2)
    """Channels of the U-Net's levels; all but the last have attention to the text, and each but the first halves."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks of a level, in both networks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads, in U-Net and text encoder."""
    text_width: int = Field(ge=2)
    """Dimension of the embedded tokens; a multiple of ``heads``."""
    text_depth: int = Field(default=2, ge=1)
    """Layers of the text encoder."""
    length: int = Field(default=77, ge=3)
    """Tokens of a prompt, with those of its start and end."""


@register_backbone("text-to-image")
class TextToImage(Backbone):
    """A latent diffusion model with a CLIP text encoder (Rombach et al., "High-Resolution Image Synthesis with Latent
    Diffusion Models", CVPR 2022).

    Imported: Stable Diffusion 1.5 as a diffusers folder with ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and
    ``scheduler``; its safety checker, which turns images black, and its feature extractor are not used.  Trained here:
    a small model of the same components, whose prompts are the class names letter by letter.

    Deviations of the local model: the autoencoder is trained without perceptual and adversarial losses, and the text
    encoder with the U-Net; of the images that lose their prompt, half get D4M's negative prompt instead of the empty
    one, so that "cartoon, anime, painting" means "no class" to a model that has never seen a cartoon.
    """

    guided_channels = LATENT_CHANNELS  # all that it predicts
    components = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

    def __init__(
        self,
        info: DatasetInfo,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler_config: Mapping[str, Any],
    ):
        """``scheduler_config``: that of the published model, with its ``_class_name``.

        Raises :class:`BadValue` unless the latents have four channels.
        """
        super().__init__(info)
        for name, channels in (("VAE", vae.config.latent_channels), ("U-Net", unet.config.in_channels)):
            if channels != LATENT_CHANNELS:
                raise BadValue(
                    f"The {name} has {channels} latent channels, a text-to-image model has {LATENT_CHANNELS}.",
                    "use a model with the components of Stable Diffusion 1.5",
                )
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.codec: Autoencoder = Autoencoder(vae, unet.config.sample_size)
        self.scheduler_config = dict(scheduler_config)

    @classmethod
    def create(cls, config: Mapping[str, Any], info: DatasetInfo, stream: torch.Generator) -> Self:
        sizes = _sizes(config, info.resolution)
        tokenizer = local_tokenizer([*info.class_names, NEGATIVE], sizes.length)
        token_ids(tokenizer, [*info.class_names, NEGATIVE])  # raises for a class name that is too long
        with scoped(stream):
            unet = _unet(sizes, info.resolution)
            vae = make_autoencoder(sizes.autoencoder, sizes.layers, info.resolution)
            text_encoder = _text_encoder(sizes, tokenizer)
        return cls(info, unet, vae, text_encoder, tokenizer, {"_class_name": "PNDMScheduler", **SCHEDULER})

    @classmethod
    def load(cls, folder: Path, info: DatasetInfo) -> Self:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        stored: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True}
        with _no_progress_bars():
            text_encoder = CLIPTextModel.from_pretrained(
                folder / "text_encoder", dtype=torch.float32, use_safetensors=True
            )
        return cls(
            info,
            UNet2DConditionModel.from_pretrained(folder / "unet", **stored),
            AutoencoderKL.from_pretrained(folder / "vae", **stored),
            text_encoder,
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")),
        )

    def save(self, folder: Path) -> None:
        for name, network in self.networks().items():
            component: Any = network
            with _no_progress_bars():
                component.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        scheduler = self.scheduler()
        scheduler.save_pretrained(folder / "scheduler")
        index = {**INDEX, "scheduler": ["diffusers", type(scheduler).__name__]}
        write_atomically(folder / "model_index.json", json.dumps(index, indent=1) + "\n")

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def scheduler(self, name: str | None = None) -> Any:
        from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

        known = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}
        own = str(self.scheduler_config["_class_name"])
        wanted = name or own.removesuffix("Scheduler").lower()
        if wanted not in known:
            raise BadValue(f"Unknown scheduler {name or own!r}.", f"use {', '.join(known)}")
        # Only the constructor of diffusers' pipelines corrects this field in configurations of other schedulers.
        corrected = {} if wanted == "pndm" else {"clip_sample": False}
        return known[wanted].from_config(self.scheduler_config, **corrected)

    def conditions(self, labels: torch.Tensor) -> Conditions:
        return self.conditions_of([self.info.class_names[label] for label in labels.tolist()])

    def conditions_of(self, prompts: Sequence[str], negative_prompt: str = "") -> Conditions:
        """The conditions of images with these prompts: (B, L, D) each, with L tokens.

        Raises :class:`BadValue` for a prompt that the tokenizer does not know or that is too long.
        """
        distinct = list(dict.fromkeys([*prompts, negative_prompt]))
        embedded = self.embedded(distinct)
        given = embedded[[distinct.index(prompt) for prompt in prompts]]
        return Conditions(given, embedded[[distinct.index(negative_prompt)] * len(prompts)])

    def embedded(self, prompts: Sequence[str]) -> torch.Tensor:
        """(n, L, D) of n prompts."""
        ids = torch.tensor(token_ids(self.tokenizer, prompts), device=self.device)
        states: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return states

    def denoise(self, latents: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.unet(latents, t, encoder_hidden_states=given).sample
        return output

    def stages(self, recipe: BackboneRecipe) -> list[Stage]:
        assert recipe.training is not None
        networks = nn.ModuleList([self.unet, self.text_encoder])
        loss = partial(self.loss, dropout=recipe.training.dropout)
        inputs = partial(latent_inputs, codec=self.codec)
        return [autoencoder_stage(self.codec, recipe), Stage("denoiser", networks, loss, recipe.training, inputs)]

    def loss(
        self, latents: torch.Tensor, labels: torch.Tensor, stream: torch.Generator, *, dropout: float
    ) -> torch.Tensor:
        """Mean squared error of the predicted noise; a share ``dropout`` of the images loses its prompt."""
        t, noise, dropped = draws(latents, dropout, stream)
        replacement = torch.randint(2, (len(latents),), generator=stream).to(labels.device)
        prompts = [*self.info.class_names, "", NEGATIVE]
        rows = torch.where(dropped, self.info.num_classes + replacement, labels)
        noised = self.scheduler("ddpm").add_noise(latents, noise, t)
        output = self.denoise(noised, t, self.embedded(prompts)[rows]).float()
        return (output - noise).square().mean()


def _unet(sizes: TextToImageSizes, resolution: int) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    levels = len(sizes.unet)
    return UNet2DConditionModel(
        sample_size=latent_side(sizes.autoencoder, resolution),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=(*["CrossAttnDownBlock2D"] * (levels - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (levels - 1)),
        block_out_channels=sizes.unet,
        layers_per_block=sizes.layers,
        norm_num_groups=GROUPS,
        cross_attention_dim=sizes.text_width,
        attention_head_dim=sizes.heads,  # diffusers' name for the number of heads
    )


def _text_encoder(sizes: TextToImageSizes, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_depth,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _sizes(config: Mapping[str, Any], resolution: int) -> TextToImageSizes:
    sizes = parse_sizes(TextToImageSizes, "text-to-image", config)
    halvings = len(sizes.autoencoder) - 1
    check_widths("text-to-image", "autoencoder", sizes.autoencoder, resolution, halvings)
    for name, width in (("text_width", sizes.text_width), *(("unet", width) for width in sizes.unet)):
        if width % sizes.heads:
            raise wrong_size("text-to-image", name, f"{width} is not a multiple of {sizes.heads}")
    check_widths("text-to-image", "unet", sizes.unet, resolution, halvings + len(sizes.unet) - 1)
    return sizes


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Inside ``with``, transformers shows no progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
