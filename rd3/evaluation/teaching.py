"""Teachers in post-evaluation: frozen copies that label views several batches ahead of the students."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from rd3.device import autocast, set_memory_format
from rd3.evaluation.hybrid import combine_logits
from rd3.evaluation.views import Batch, Chunk, views
from rd3.models import folded
from rd3.protocol import EvalProtocol
from rd3.recipe import EvaluationRecipe

AHEAD = {"cpu": 256}
"""Number of images that teachers label at once, by type of device; in eval mode logits do not depend on the batch."""
AHEAD_ELSEWHERE = 1024


def frozen(teacher: nn.Module, mode: str, precision: str, device: torch.device) -> nn.Module:
    """A frozen copy of a teacher for inference.

    In ``eval`` mode batch norms are folded into convolutions; in ``batch`` mode they use the statistics of the batch.
    """
    if mode == "eval":
        own = folded(teacher).to(device)
    else:
        own = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        for module in own.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Without running statistics a batch norm uses batch statistics even in eval mode; dropout stays off.
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
    set_memory_format(own, precision)
    return own


class LabelledViews:
    """Batches with the teachers' logits, for one or several evaluations that share them."""

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        teachers: Sequence[nn.Module],
        recipe: EvaluationRecipe,
        precision: str,
    ):
        """``teachers`` are frozen and on the device of ``images``; ``recipe`` is any of those sharing the views."""
        self._teachers, self._precision = teachers, precision
        protocol, device = recipe.protocol, images.device
        wanted = AHEAD.get(device.type, AHEAD_ELSEWHERE)
        several = teachers and protocol.teacher_mode == "eval"
        ahead = max(1, wanted // protocol.batch_size) if several else 1
        self._chunks = views(images, labels, protocol, recipe.student_seed, ahead)

    def __iter__(self) -> Iterator[LabelledBatch]:
        for chunk in self._chunks:
            logits = self._logits(chunk)
            for place, batch in enumerate(chunk.batches):
                yield LabelledBatch(batch, [each[place] for each in logits])

    def _logits(self, chunk: Chunk) -> list[tuple[torch.Tensor, ...]]:
        """(B, C) float32 logits of each teacher for each batch."""
        with torch.inference_mode(), autocast(chunk.pixels.device, self._precision):
            logits = [teacher(chunk.pixels) for teacher in self._teachers]
        sizes = [len(batch.images) for batch in chunk.batches]
        # A copy, as tensors created in inference mode cannot be saved for a backward pass.
        return [each.to(torch.float32, copy=True).split(sizes) for each in logits]


class LabelledBatch:
    """One batch with the logits of each teacher."""

    def __init__(self, batch: Batch, logits: list[torch.Tensor]):
        self._batch, self._logits = batch, logits

    @property
    def last(self) -> bool:
        """Whether this is the last batch of its epoch."""
        return self._batch.last

    def under(self, protocol: EvalProtocol) -> Batch:
        """The batch with soft labels, combined as the protocol's ``hybrid`` specifies."""
        if not self._logits:
            return self._batch
        logits = combine_logits(self._logits, protocol)
        return replace(self._batch, targets=replace(self._batch.targets, teacher_logits=logits))
