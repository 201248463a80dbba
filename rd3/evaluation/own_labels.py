"""A set's own soft labels in training (``soft_labels: own``), without a teacher."""

from __future__ import annotations

import torch

from rd3.evaluation.stored import ABSENT
from rd3.evaluation.teaching import OnceLabels
from rd3.losses import LOSSES
from rd3.protocol import EvalProtocol
from rd3.soft_labels import SoftLabels

FLOOR = 1e-12
"""Smallest probability whose logarithm is taken for losses that need logits; that is -27.6."""


class OwnLabels(OnceLabels):
    """One soft label for each image, which the set comes with; mixed as those of teachers that label images once."""

    def __init__(self, own: SoftLabels, device: torch.device):
        super().__init__([])
        self._own = SoftLabels(own.values.to(device), own.kind)

    def _computed(self, protocol: EvalProtocol) -> torch.Tensor:
        return own_logits(self._own, LOSSES.get(protocol.loss.name).of_teacher == "softmax")


def own_logits(own: SoftLabels, softmax_only: bool) -> torch.Tensor:
    """(N, C) float32 logits of a set's own labels: logits as they are, of probabilities their logarithms.

    Logarithms of probabilities are logits up to a constant for each image, on which softmaxes do not depend: a loss at
    temperature 1 sees exactly the probabilities, one at temperature T sees p^(1/T), normalised.  If p is the softmax of
    a teacher at temperature 1, that is the teacher's softmax at T; if it is one at temperature S, it is that at S T.

    ``softmax_only``: the loss uses only the softmax of the logits, not the logits themselves.  Then a probability of 0
    is 0 at every temperature; else probabilities are raised to at least :data:`FLOOR`.
    """
    if own.kind == "logits":
        return own.values.float()
    probabilities = own.values.double()
    if not softmax_only:
        return probabilities.clamp(min=FLOOR).log().float()
    logs = probabilities.log()
    return torch.where(probabilities > 0, logs, logs.amax(dim=1, keepdim=True) - ABSENT).float()
