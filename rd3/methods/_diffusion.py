"""Sample the images of a set from a diffusion model: shared by all generation-based methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rd3.datasets import DatasetInfo
from rd3.diffusion.guide import PLAIN, Guide, Member
from rd3.lazy import torch
from rd3.methods import Block, Context, Cost, Method
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone
    from rd3.diffusion.sampler import Conditions

BATCH = {"cpu": 16}
"""Images sampled together, by device; affects the images by rounding alone, and is in no key."""
BATCH_ELSEWHERE = 32


class DiffusionMethod(Method):
    """Base of the methods that sample from a diffusion model; their settings have ``steps`` and ``guidance``.

    On a GPU :meth:`make` gets the members of several classes in one block, so it may use ``block.members`` alone, and
    not ``block.index``.
    """

    def blocks_at_once(self, info: DatasetInfo, device: torch.device) -> int:
        """On a GPU several, which together fill a batch where a class has few images."""
        return 1 if device.type == "cpu" else 10

    def make_many(self, blocks: Sequence[Block], ctx: Context) -> list[torch.Tensor]:
        """Sample small blocks as one, so that a batch is full; large ones one after the other."""
        if len(blocks[0].members) >= BATCH_ELSEWHERE:
            return super().make_many(blocks, ctx)
        members = tuple(member for block in blocks for member in block.members)
        images = self.make(Block(blocks[0].index, members), ctx)
        return list(images.split([len(block.members) for block in blocks]))

    def steps_run(self, settings: Any) -> int:
        """Number of steps that are run for an image."""
        return int(settings.steps)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        """All denoising, without decoding; ``forward(key)`` is the cost of one image's pass through that backbone."""
        settings: Any = self.Settings.model_validate(recipe.settings)
        passes = (1 if settings.guidance == 1 else 2) * self.steps_run(settings)
        return passes * recipe.ipc * info.num_classes * forward(recipe.backbones[0])


def sampled(
    block: Block,
    ctx: Context,
    backbone: Backbone,
    *,
    scheduler: str | None = None,
    conditions: Callable[[torch.Tensor], Conditions] | None = None,
    start: Callable[[Sequence[Member]], torch.Tensor] | None = None,
    strength: float = 1.0,
    guide: Callable[[Sequence[Member]], Guide] = lambda members: PLAIN,
) -> torch.Tensor:
    """(n, 3, H, W) uint8: the images of a block, at the dataset's resolution: phases ``generate`` and ``decode``.

    The settings have the number of steps and the guidance scale.  ``conditions`` maps labels (B,) int64 to what the
    model is conditioned on (by default its own for these classes), ``start`` members, (label, k) each, to latents
    (B, C, h, w) for image-to-image with noise ``strength`` (0-1), and ``guide`` members to the guide of their batch,
    which may change the guidance scale and the latents at every step (by default it does not).  Every image has noise
    of its own, a function of set seed, label and k.  On a CPU a batch holds images of one block, so that a block has
    the same bits however the blocks are shared out.
    """
    from rd3.diffusion.codec import to_size
    from rd3.diffusion.sampler import sample

    batch = BATCH.get(ctx.device.type, BATCH_ELSEWHERE)
    parts = [block.members[first : first + batch] for first in range(0, len(block.members), batch)]
    images: list[torch.Tensor] = []
    for number, part in enumerate(parts):
        labels = torch.tensor([label for label, _k in part])
        with ctx.phase("generate"), ctx.autocast():
            latents = sample(
                backbone,
                backbone.scheduler(scheduler),
                (conditions or backbone.conditions)(labels),
                [ctx.rng("sample", *member) for member in part],
                part,  # passed on to the guide
                steps=ctx.settings.steps,
                guidance=ctx.settings.guidance,
                start=start(part) if start is not None else None,
                strength=strength,
                guide=guide(part),
                progress=ctx.part(number, len(parts)),
            )
        with ctx.phase("decode"), torch.inference_mode():
            images.append(to_size(backbone.codec.decode(latents.float()), ctx.info.resolution).cpu())
    return torch.cat(images)
