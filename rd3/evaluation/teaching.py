"""Teachers in post-evaluation: frozen copies, and what they say of views, several batches ahead of the students."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from rd3.device import autocast, set_memory_format
from rd3.evaluation.hybrid import together
from rd3.evaluation.views import Batch, Chunk, views
from rd3.models import folded
from rd3.protocol import EvalProtocol
from rd3.recipe import EvaluationRecipe

AHEAD = {"cpu": 256}
"""Images that teachers label at once, by type of device: frozen and in eval mode, they answer per image."""
AHEAD_ELSEWHERE = 1024


def frozen(teacher: nn.Module, mode: str, precision: str, device: torch.device) -> nn.Module:
    """A copy of a teacher that answers and never changes.

    In ``eval`` mode its batch norms are folded into its convolutions; in ``batch`` mode it drops running statistics.
    """
    if mode == "eval":
        own = folded(teacher).to(device)
    else:
        own = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        for module in own.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Without running statistics a batch norm uses the batch's even in eval mode; dropout stays off.
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
    set_memory_format(own, precision)
    return own


class LabelledViews:
    """Batches with what the teachers answered, for one or several evaluations that share them."""

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        teachers: Sequence[nn.Module],
        recipe: EvaluationRecipe,
        precision: str,
    ):
        """``teachers`` are frozen and on the device of ``images``; ``recipe`` is any of those that share the views."""
        self._teachers, self._precision = teachers, precision
        protocol, device = recipe.protocol, images.device
        wanted = AHEAD.get(device.type, AHEAD_ELSEWHERE)
        several = teachers and protocol.teacher_mode == "eval"
        ahead = max(1, wanted // protocol.batch_size) if several else 1
        self._chunks = views(images, labels, protocol, recipe.student_seed, ahead)

    def __iter__(self) -> Iterator[Answered]:
        for chunk in self._chunks:
            answers = self._answers(chunk)
            for place, batch in enumerate(chunk.batches):
                yield Answered(batch, [each[place] for each in answers])

    def _answers(self, chunk: Chunk) -> list[tuple[torch.Tensor, ...]]:
        """Of each teacher, of each batch: (B, C) float32."""
        with torch.inference_mode(), autocast(chunk.pixels.device, self._precision):
            answers = [teacher(chunk.pixels) for teacher in self._teachers]
        sizes = [len(batch.images) for batch in chunk.batches]
        # A copy: what inference mode made cannot be kept for a backward pass.
        return [answer.to(torch.float32, copy=True).split(sizes) for answer in answers]


class Answered:
    """One batch, and what each teacher says of it."""

    def __init__(self, batch: Batch, answers: list[torch.Tensor]):
        self._batch, self._answers = batch, answers

    @property
    def last(self) -> bool:
        """Of its epoch."""
        return self._batch.last

    def under(self, protocol: EvalProtocol) -> Batch:
        """The batch with the soft labels of a protocol, as its ``hybrid`` combines them."""
        if not self._answers:
            return self._batch
        logits = together(self._answers, protocol)
        return replace(self._batch, targets=replace(self._batch.targets, teacher_logits=logits))
