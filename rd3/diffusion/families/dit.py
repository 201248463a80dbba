"""``dit``: class-conditional diffusion transformers, in the latents of a VAE or on pixels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field
from torch import nn

from rd3.datasets import DatasetInfo
from rd3.diffusion.autoencoder import autoencoder_stage, check_widths, make_autoencoder
from rd3.diffusion.backbone import Backbone, Stage, parse_sizes, register_backbone, wrong_size
from rd3.diffusion.codec import Autoencoder, Pixels
from rd3.diffusion.cost import LATENT_CHANNELS, latent_side
from rd3.diffusion.inputs import latent_inputs, pixel_inputs
from rd3.diffusion.loss import TIMES, Noising, squared_error, variational_bound
from rd3.diffusion.sampler import Conditions
from rd3.errors import BadValue, DataMissing
from rd3.recipe import BackboneRecipe
from rd3.seeding import scoped
from rd3.teacher.class_order import imagenet_outputs
from rd3.values import Frozen

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel


class DiTSizes(Frozen):
    """Sizes of a DiT that is trained here."""

    width: int = Field(ge=2)
    """Dimension of the tokens; a multiple of ``heads``."""
    depth: int = Field(ge=1)
    """Number of blocks."""
    heads: int = Field(ge=1)
    """Attention heads of a block."""
    patch: int = Field(ge=1)
    """Side of a token's patch, in pixels of what the transformer works on."""
    autoencoder: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Channels of the levels of an autoencoder in whose latents it works, each but the first halving; None works on
    pixels."""
    layers: int = Field(default=1, ge=1)
    """Residual blocks of a level of the autoencoder."""


@register_backbone("dit")
class DiT(Backbone):
    """A diffusion transformer (Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023).

    Imported: DiT-XL/2 as a diffusers folder with ``transformer`` and ``vae``, whose classes are ImageNet-1K's.  Trained
    here: a small model on pixels or in the latents of a small autoencoder of four channels, which is named as a local
    one.

    Deviations: diffusers keeps a copy of the time and class embedders in every block; they are one embedder here, as
    published, if the copies are equal.
    """

    components = ("transformer",)
    guided_channels = 3  # also of latents with four (facebookresearch/DiT ``models.py``)

    def __init__(
        self, info: DatasetInfo, transformer: DiTTransformer2DModel, rows: list[int], vae: AutoencoderKL | None = None
    ):
        """``rows``: the row of the class embedding of each class of ``info``; the last row of all is "no class"."""
        super().__init__(info)
        self.transformer, self.vae, side = transformer, vae, transformer.config.sample_size
        self.codec = Pixels(side) if vae is None else Autoencoder(vae, side)
        self.rows = torch.tensor(rows)
        share_embedders(transformer)

    @classmethod
    def create(cls, config: Mapping[str, Any], info: DatasetInfo, stream: torch.Generator) -> Self:
        from diffusers import DiTTransformer2DModel

        sizes, side = _sizes_and_side(config, info.resolution)
        channels = LATENT_CHANNELS if sizes.autoencoder else 3
        with scoped(stream):
            transformer = DiTTransformer2DModel(
                num_attention_heads=sizes.heads,
                attention_head_dim=sizes.width // sizes.heads,
                in_channels=channels,
                out_channels=2 * channels,
                num_layers=sizes.depth,
                sample_size=side,
                patch_size=sizes.patch,
                num_embeds_ada_norm=info.num_classes,
                norm_type="ada_norm_zero",
                activation_fn="gelu-approximate",
            )
            initialise(transformer)
            vae = make_autoencoder(sizes.autoencoder, sizes.layers, info.resolution) if sizes.autoencoder else None
        return cls(info, transformer, list(range(info.num_classes)), vae)

    @classmethod
    def load(cls, folder: Path, info: DatasetInfo) -> Self:
        from diffusers import AutoencoderKL, DiTTransformer2DModel

        stored: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True}
        transformer = DiTTransformer2DModel.from_pretrained(folder / "transformer", **stored)
        classes = transformer.config.num_embeds_ada_norm
        rows = list(range(classes)) if classes == info.num_classes else _imagenet(info, classes)
        channels = transformer.config.in_channels
        if not (folder / "vae").is_dir():
            if channels != 3:
                raise DataMissing(
                    f"{folder} has no vae, and its transformer works on latents of {channels} channels.",
                    "add the folder vae of the published pipeline",
                )
            return cls(info, transformer, rows)
        vae = AutoencoderKL.from_pretrained(folder / "vae", **stored)
        if vae.config.latent_channels != channels:
            raise BadValue(
                f"The vae in {folder} has {vae.config.latent_channels} latent channels, but its transformer takes "
                f"{channels}.",
                "use the vae of the same pipeline",
            )
        return cls(info, transformer, rows, vae)

    def save(self, folder: Path) -> None:
        with_copies(self.transformer).save_pretrained(folder / "transformer")
        if self.vae is not None:
            self.vae.save_pretrained(folder / "vae")
        self.scheduler().save_pretrained(folder / "scheduler")

    def networks(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, **({} if self.vae is None else {"vae": self.vae})}

    def scheduler(self, name: str | None = None) -> Any:
        from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

        betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        if name in (None, "ddpm"):
            # With this spacing its timesteps, 0 to 999, are those of DiT's own sampler.
            return DDPMScheduler(**betas, variance_type="learned_range", clip_sample=False, timestep_spacing="linspace")
        # Both step from a timestep to the next one of the sequence with this spacing, not with linspace.
        if name == "ddim":
            return DDIMScheduler(**betas, clip_sample=False, timestep_spacing="trailing")
        if name == "pndm":
            return PNDMScheduler(**betas, skip_prk_steps=True, timestep_spacing="trailing")
        raise BadValue(f"Unknown scheduler {name!r}.", "use ddpm, ddim or pndm")

    def conditions(self, labels: torch.Tensor) -> Conditions:
        given = self.rows.to(self.device)[labels.to(self.device)]
        return Conditions(given, torch.full_like(given, self.null))

    @property
    def null(self) -> int:
        """Row of the class embedding that means "no class"."""
        return int(self.transformer.config.num_embeds_ada_norm)

    def denoise(self, latents: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.transformer(latents, timestep=t, class_labels=given).sample
        return output

    def loss(
        self, latents: torch.Tensor, labels: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) loss of predicting ``noise`` and variances at times ``t``, and (B, C, h, w) the prediction of x_0.

        ``dropped`` (B,) bool: images that are trained without their class.
        """
        noising = Noising(self.device)
        noised = noising.noised(latents, noise, t)
        conditions = self.conditions(labels)
        assert conditions.null is not None
        output = self.denoise(noised, t, torch.where(dropped, conditions.null, conditions.given)).float()
        error = squared_error(output, noise) + variational_bound(output, latents, noised, t, noising)
        return error, noising.cleaned(noised, output[:, : latents.shape[1]], t)

    def stages(self, recipe: BackboneRecipe) -> list[Stage]:
        assert recipe.training is not None
        training, codec = recipe.training, self.codec

        def loss(inputs: torch.Tensor, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
            latents = inputs if isinstance(codec, Autoencoder) else codec.encode(inputs, ())  # pixels draw no noise
            t, noise, dropped = draws(latents, training.dropout, stream)
            return self.loss(latents, labels, t, noise, dropped)[0].mean()

        inputs = partial(latent_inputs, codec=codec) if isinstance(codec, Autoencoder) else pixel_inputs
        denoiser = Stage("transformer", nn.ModuleList([self.transformer]), loss, training, inputs)
        return [autoencoder_stage(codec, recipe), denoiser] if isinstance(codec, Autoencoder) else [denoiser]


def draws(
    latents: torch.Tensor, dropout: float, stream: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Times (B,), noise (B, C, h, w) and which images (B,) lose their class, on the latents' device."""
    t = torch.randint(TIMES, (len(latents),), generator=stream)
    noise = torch.randn(latents.shape, generator=stream)
    dropped = torch.rand(len(latents), generator=stream) < dropout
    return t.to(latents.device), noise.to(latents.device), dropped.to(latents.device)


def share_embedders(transformer: DiTTransformer2DModel) -> None:
    """Make the embedders of time and class one for all blocks, as published, if the copies of diffusers are equal."""
    first = transformer.transformer_blocks[0].norm1.emb
    wanted = first.state_dict()
    for block in transformer.transformer_blocks[1:]:
        own = block.norm1.emb.state_dict()
        if all(torch.equal(wanted[name], own[name]) for name in wanted):
            block.norm1.emb = first


def with_copies(transformer: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """A model equal to this one, on the CPU, in which each block has embedders of its own, as diffusers saves it."""
    copied = copy.deepcopy(transformer).cpu()
    for block in copied.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    return copied


def initialise(transformer: DiTTransformer2DModel) -> None:
    """Published initialisation: Xavier linear layers, small embeddings, and zeros where a residual or the output ends.

    Draws from torch's global generator.  Source: facebookresearch/DiT ``models.py``, ``initialize_weights``.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = transformer.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    embedders = transformer.transformer_blocks[0].norm1.emb
    nn.init.normal_(embedders.class_embedder.embedding_table.weight, std=0.02)
    nn.init.normal_(embedders.timestep_embedder.linear_1.weight, std=0.02)
    nn.init.normal_(embedders.timestep_embedder.linear_2.weight, std=0.02)
    for block in transformer.transformer_blocks:
        block.norm1.emb = embedders
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(transformer.proj_out_1.weight)
    nn.init.zeros_(transformer.proj_out_2.weight)


def _sizes_and_side(config: Mapping[str, Any], resolution: int) -> tuple[DiTSizes, int]:
    """The sizes in a recipe, and the side of what the transformer works on: pixels, or latents of the autoencoder."""
    sizes = parse_sizes(DiTSizes, "dit", config)
    if sizes.width % sizes.heads:
        raise wrong_size("dit", "width", f"{sizes.width} is not a multiple of {sizes.heads} heads")
    side = resolution
    if sizes.autoencoder:
        check_widths("dit", "autoencoder", sizes.autoencoder, resolution, len(sizes.autoencoder) - 1)
        side = latent_side(sizes.autoencoder, resolution)
    if side % sizes.patch:
        raise wrong_size("dit", "patch", f"{side} pixels are not a multiple of {sizes.patch}")
    return sizes, side


def _imagenet(info: DatasetInfo, classes: int) -> list[int]:
    """The rows of the dataset's classes in a model of ImageNet-1K's."""
    if classes != 1000:
        raise BadValue(
            f"The model knows {classes} classes, {info.name} has {info.num_classes}.",
            "train a backbone of this dataset: rd3 diffusion train",
        )
    return imagenet_outputs(info.class_ids, info.name)
