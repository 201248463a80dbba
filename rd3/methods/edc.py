"""EDC: real images optimised to match the class statistics of a pool of networks' layers."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from rd3.augment import horizontal_flip
from rd3.datasets import DatasetInfo
from rd3.lazy import F, torch
from rd3.methods import Block, Context, Cost, register_method
from rd3.methods._pixels import to_uint8
from rd3.methods._pool import Pool, PoolMethod, PoolSettings, view
from rd3.methods._recovery import optimise, start
from rd3.recipe import SetRecipe

_TEMPERATURE = 4.0
"""Softmax temperature of the logits that the flatness term compares."""


class EDCSettings(PoolSettings):
    """Settings as in the scripts in ``Branch_*/recover``."""

    category_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the class statistics in the matching target; the statistics of all images have the rest of 1."""
    flatness_weight: float = Field(default=0.0, ge=0)
    """Weight of the flatness term relative to the cross-entropy.  The paper uses 1; no released script passes the flag
    that enables it."""
    image_ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the exponential moving average of the images with which the flatness term compares."""


@register_method("edc", version=1)
class EDC(PoolMethod):
    """Images of an init set, optimised for the classification and the class statistics of a pool of networks.

    A batch holds whole classes, as far as they fit; each image of the init set is first flipped at random.  Every
    iteration takes one random view of the batch (crop and flip: shared by all its images) and the next teacher of the
    pool, and adds the cross-entropy and ``matching_weight`` times the distance of the statistics of its layers
    (BatchNorm and convolutions; channels and tiles) from those of all images and of the batch's classes ("soft
    category-aware matching"), and optionally the flatness term.  The last iterate is kept.  Sets do not nest.

    Source: Shao et al., "Elucidating the Design Space of Dataset Condensation", NeurIPS 2024; shaoshitong/EDC
    ``Branch_*/recover``.

    Deviations: class statistics of tiles keep their names, where the released code writes means as variances and
    variances as means, so that all its runs matched them swapped: this is the paper's EDC rather than the scripts';
    CIFAR-10's pool is trained for the five epochs that its script names, of which the released code keeps the first
    (``e % 10 == 0``), and three of its eight networks there have no published training; image k of a class starts from
    image k of the init set's class, not from one drawn with replacement; moving averages of statistics restart with
    every batch, so that batches are independent; every teacher gets pixels normalised with its own constants, and the
    optimisation runs in the normalised space of the first one; the resized crop is antialiased; the second clamp of the
    CIFAR-10 script, before the backward pass, is left out, since images that start in [0, 1] and are clamped after
    every step never leave it; the flatness term works for every dataset, where two of the released branches have a
    constant zero, and its averaged images pass the teacher without being matched; one random stream per batch, where
    the authors fix no seed; stored losslessly unless ``save_format`` is ``jpeg``.
    """

    Settings = EDCSettings

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        settings: EDCSettings = ctx.settings
        stream = ctx.rng("recover", block.index)
        with ctx.phase("recover"):
            pool = Pool(block, ctx, category_weight=settings.category_weight)
            images = start(block, ctx, stream)
            if settings.flip:
                images = horizontal_flip(images, ctx.rng("start", block.index))
            averaged = images.clone()

            def loss_of(images: torch.Tensor, iteration: int) -> torch.Tensor:
                # Cut as one batch, so that both are seen under the same draw.
                both = torch.cat([images, averaged]) if settings.flatness_weight else images
                seen, *seen_averaged = view(both, settings, stream).split(len(images))
                logits, matching = pool.forward(seen, iteration)
                loss = F.cross_entropy(logits, pool.labels) + settings.matching_weight * matching
                if seen_averaged:
                    with torch.no_grad():
                        wanted = pool.logits(seen_averaged[0], iteration)
                        averaged.lerp_(images, 1 - settings.image_ema)
                    loss = loss + settings.flatness_weight * flatness(logits, wanted)
                return loss

            where = f"EDC, block {block.index}"
            images = optimise(images, loss_of, pool.space, settings, where=where, progress=ctx.progress)
            return to_uint8(pool.space.to_255(images), settings.save_format)

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        cost = super().cost(recipe, info, forward)
        # The averaged images take one forward pass more, besides the two of :class:`RecoveryMethod`.
        return 1.5 * cost if recipe.settings["flatness_weight"] else cost


def flatness(logits: torch.Tensor, averaged: torch.Tensor) -> torch.Tensor:
    """KL(softmax(averaged / 4) || softmax(logits / 4)) of logits (B, C), the mean over batch *and* classes."""
    wanted = (averaged / _TEMPERATURE).log_softmax(1)
    return (wanted.exp() * (wanted - (logits / _TEMPERATURE).log_softmax(1))).mean()
