"""DWA: recovery from real images against a teacher whose weights are first perturbed to raise the batch's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.lazy import nn, torch
from rd3.methods import Block, Context, Cost, register_method
from rd3.methods._bn_matching import BatchNormMatching, MatchingSettings
from rd3.methods._recovery import BatchNormLoss, by_image
from rd3.recipe import SetRecipe


class DWASettings(MatchingSettings):
    """Settings as in ``distillation_*.py`` and in the readme that calls them."""

    variance_weight: float = Field(ge=0)
    """Weight of the variance distance in the BatchNorm loss; the mean distance has weight 1."""
    steps: int = Field(ge=0)
    """Gradient-ascent steps that perturb the teacher's weights; 0 leaves the teacher unperturbed, with everything else
    equal."""
    rho: float = Field(ge=0)
    """Total length of the perturbation steps, an upper bound on the L2 distance that the weights move."""
    accumulate: bool = False
    """Follow the released code: batches of the same image number share one teacher, which each perturbs further."""


@register_method("dwa", version=1)
class DWA(BatchNormMatching):
    """Real images optimised as in SRe2L, against a teacher perturbed for each batch so that batches are diverse.

    Before the first iteration a copy of the teacher takes ``steps`` steps of length ``rho / steps`` up the gradient of
    the batch's cross-entropy with respect to all its parameters, on the view that the first iteration will see.  The
    batch is then recovered against this copy, with the variance distance of the BatchNorm term weighted by
    ``variance_weight``; the running statistics stay the teacher's.  The published initial images are real ones: here
    the ``random`` set, so that sets nest.

    With ``accumulate`` a block is all batches of one image number and follows the released code to the letter: one copy
    for all, perturbed further by every batch; the gradients of its parameters accumulate over the iterations, and the
    first step of the next batch follows their sum; the first update of the images has the cross-entropy gradients of
    the perturbation added.

    Source: Du et al., "Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment",
    NeurIPS 2024; AngusDujw/Diversity-Driven-Synthesis ``distillation/distillation_*.py``, ``perterb.py``, ``utils.py``.

    Deviations: without ``accumulate``, every batch starts from the unperturbed teacher with zero gradients, so the
    first update of the images lacks the cross-entropy gradients of the perturbation steps; pixels are clamped to the
    teacher's own constants, where the authors train on CIFAR-10 with one pair and clamp and save with another; the
    initial images are drawn by the set seed, not by the order of a directory, and at 224 pixels are cropped square, not
    squeezed; the resized crop is antialiased; one random stream per block, where the authors fix no seed; stored
    losslessly unless ``save_format`` is ``jpeg``.
    """

    Settings = DWASettings
    quick = {"iterations": 3, "steps": 2}

    def blocks(self, recipe: SetRecipe, info: DatasetInfo) -> list[Block]:
        if recipe.settings["accumulate"]:
            return by_image(recipe.ipc, info.num_classes, info.num_classes)
        return super().blocks(recipe, info)

    def network(self, ctx: Context) -> nn.Module:
        return copy.deepcopy(super().network(ctx))

    def statistics(self, network: nn.Module, settings: DWASettings, batches: int) -> BatchNormLoss:
        # ``batches`` that pass the network at once: 1 here, as every block has a network of its own.
        return BatchNormLoss(network, settings.first_multiplier, settings.variance_weight, batches=batches)

    def before(
        self, network: nn.Module, error: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, settings: Any
    ) -> torch.Tensor | None:
        images = images.detach().requires_grad_(settings.accumulate)
        network.requires_grad_(True)
        for _step in range(settings.steps):
            error(images).backward()
            climb(network, settings.rho / settings.steps)
        if not settings.accumulate:
            network.requires_grad_(False)
        return images.grad

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        settings: dict[str, Any] = recipe.settings
        # A backward pass to the weights as well costs about two forward passes.
        recovering = (3 if settings["accumulate"] else 2) * settings["iterations"]
        passes: float = (recovering + 3 * settings["steps"]) * recipe.ipc * info.num_classes
        return passes * forward(recipe.teachers[0])


def climb(network: nn.Module, length: float) -> None:
    """Take one gradient-ascent step of L2 length ``length`` over all parameters, and clear their gradients."""
    found = [(parameter, parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for _parameter, gradient in found]).norm()
    with torch.no_grad():
        for parameter, gradient in found:
            parameter.add_(gradient * (length / (norm + 1e-12)))
            parameter.grad = None
