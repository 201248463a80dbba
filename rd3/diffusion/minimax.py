"""Fine-tuning of Minimax Diffusion: which parameters it trains, its two terms, and its memories.

Source: vimar-gu/MinimaxDiffusion ``train_dit.py``, ``models.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from rd3.augment import horizontal_flip, to_unit
from rd3.datasets import Dataset
from rd3.device import repeatable_kernels
from rd3.diffusion.averaging import AveragedTraining
from rd3.diffusion.families.dit import DiT, draws
from rd3.recipe import DerivedRecipe
from rd3.seeding import generator
from rd3.teacher.training import Images

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

    from rd3.diffusion.derivations.minimax import MinimaxTuning


class Scale(nn.Module):
    """Parametrisation that multiplies the outputs of a linear layer by a trained vector, which starts at 1."""

    def __init__(self, gamma: nn.Parameter):
        super().__init__()
        self.gamma = gamma

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.gamma.view(-1, *[1] * (values.dim() - 1)) * values


def insert_scales(transformer: DiTTransformer2DModel) -> None:
    """Give the first half of the blocks their scales: attention's q, k, v and projection, and both residuals.

    All of them scale outputs of linear layers, so that :func:`merge_scales` can fold them into weights and biases.
    """
    blocks = transformer.transformer_blocks
    for block in blocks[: len(blocks) // 2]:
        projection, last = block.attn1.to_out[0], block.ff.net[2]
        # Attention ends in its projection, which has two scales: its own, and that of attention's residual.
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, projection, projection, last):
            gamma = nn.Parameter(torch.ones(layer.out_features, device=layer.weight.device))
            for name in ("weight", "bias"):
                parametrize.register_parametrization(layer, name, Scale(gamma))


def merge_scales(transformer: DiTTransformer2DModel) -> None:
    """Fold the scales into the weights and biases, after which the model has its published layers alone."""
    for module in list(transformer.modules()):
        if parametrize.is_parametrized(module):
            for name in ("weight", "bias"):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def trained_parameters(transformer: DiTTransformer2DModel) -> dict[str, nn.Parameter]:
    """What is trained, by name: every bias, the class embedding and the scales (DiffFit).

    The published filter takes names with ``bias``, ``norm``, ``gamma`` or ``y_embed``; its norms have no parameters,
    while in diffusers everything of a block's modulation is called ``norm1``.
    """
    found = {}
    for name, parameter in transformer.named_parameters():
        last = name.removesuffix(".original").rpartition(".")[2]
        if last in ("bias", "gamma") or name.endswith("class_embedder.embedding_table.weight"):
            found[name] = parameter
    return found


class Memories:
    """The latest latents of each class, flattened: real ones and predictions, in two queues."""

    def __init__(self, size: int):
        self.size = size
        self._queues: dict[str, deque[torch.Tensor]] = {}

    def terms(self, predicted: torch.Tensor, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(representativeness, diversity) of predictions (B, D), each averaged over the batch's classes.

        For each class with memories: 1 minus the smallest cosine between a prediction and a real latent, and the
        largest cosine between a prediction and an earlier one.  0 for classes without memories.
        """
        classes = sorted(set(labels))
        pull, push = predicted.new_zeros(()), predicted.new_zeros(())
        for label in classes:
            if f"real.{label}" not in self._queues:
                continue
            own = F.normalize(predicted[[one == label for one in labels]], dim=1)
            real, earlier = (
                F.normalize(torch.stack(list(self._queues[f"{name}.{label}"])), dim=1) for name in ("real", "predicted")
            )
            pull = pull + 1 - (own @ real.T).min()
            push = push + (own @ earlier.T).max()
        return pull / len(classes), push / len(classes)

    def add(self, real: torch.Tensor, predicted: torch.Tensor, labels: Sequence[int]) -> None:
        """Append latents (B, D) to the queues of their classes; the oldest ones leave."""
        for name, latents in (("real", real), ("predicted", predicted)):
            for label, latent in zip(labels, latents.detach(), strict=True):
                self._queues.setdefault(f"{name}.{label}", deque(maxlen=self.size)).append(latent)

    def state(self) -> dict[str, torch.Tensor]:
        """Both queues of each class, stacked: (up to ``size``, D) by ``real.LABEL`` and ``predicted.LABEL``."""
        return {name: torch.stack(list(kept)) for name, kept in self._queues.items()}

    def restore(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Put :meth:`state`, which may be among other tensors, back."""
        for name, kept in state.items():
            if name.startswith(("real.", "predicted.")):
                self._queues[name] = deque(kept.to(device), maxlen=self.size)


class FineTuning(AveragedTraining):
    """The fine-tuning of one model, epoch by epoch."""

    def __init__(self, backbone: DiT, settings: MinimaxTuning, recipe: DerivedRecipe, dataset: Dataset):
        self.backbone, self.settings, self.seed = backbone, settings, recipe.seed
        insert_scales(backbone.transformer)
        # The model's own dropout of classes stays off: it is drawn here.
        backbone.transformer.eval().requires_grad_(False)
        parameters = trained_parameters(backbone.transformer)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        super().__init__(parameters, weight_decay=0.0, ema=settings.ema)
        self.memories = Memories(settings.memory)
        self.images = Images(dataset, recipe.data.split, backbone.device)

    def epoch(self, epoch: int, report: Callable[[float], None] = lambda share: None) -> float:
        """One pass over the training images, without a last batch that is not full; its mean loss.

        ``report`` gets the share of the epoch that is done.
        """
        order = torch.randperm(len(self.images.labels), generator=generator(self.seed, "minimax", "order", epoch))
        stream = generator(self.seed, "minimax", "noise", epoch)
        size = min(self.settings.batch_size, len(order))
        losses = []
        for batch in order.split(size):
            if len(batch) == size:
                with repeatable_kernels():
                    losses.append(self._train_on(*self.images.batch(batch), stream))
                report(len(losses) * size / len(order))
        return float(torch.stack(losses).mean())

    def _train_on(self, pixels: torch.Tensor, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        images = horizontal_flip(to_unit(pixels), stream)
        with torch.no_grad():
            latents = self.backbone.codec.encode(images, [stream] * len(images))
        t, noise, dropped = draws(latents, self.settings.dropout, stream)
        error, predicted = self.backbone.loss(latents, labels, t, noise, dropped)
        flat, classes = predicted.flatten(1), labels.tolist()
        pull, push = self.memories.terms(flat, classes)
        loss = error.mean() + self.settings.representativeness * pull + self.settings.diversity * push
        self.step(loss, self.settings.lr)
        self.memories.add(latents.flatten(1), flat, classes)
        return loss.detach()

    def state(self) -> dict[str, torch.Tensor]:
        return super().state() | self.memories.state()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        super().restore(state)
        self.memories.restore(state, self.backbone.device)

    @torch.no_grad()
    def finish(self) -> None:
        """Replace the trained parameters by their moving averages and fold the scales in."""
        super().finish()
        merge_scales(self.backbone.transformer)
        self.backbone.frozen()
