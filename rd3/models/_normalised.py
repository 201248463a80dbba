"""A network with its own normalisation, so that pixels stay in [0, 1] and teachers' constants may differ."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

from rd3.errors import Unsupported
from rd3.recipe import Normalisation


class NormalisedNetwork(nn.Module):
    """``network`` applied to ``(pixels - mean) / std``; the constants are non-persistent buffers."""

    mean: torch.Tensor
    """(1, 3, 1, 1), of pixels in [0, 1]."""
    std: torch.Tensor
    """(1, 3, 1, 1), of pixels in [0, 1]."""

    if TYPE_CHECKING:

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor: ...

    def __init__(self, network: nn.Module, normalisation: Normalisation):
        super().__init__()
        self.network = network
        self.normalisation = normalisation
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, 3, 1, 1), persistent=False)

    @functools.cached_property
    def head_name(self) -> str:
        """Name of the last linear layer; raises :class:`Unsupported` for a network without any."""
        # In order of registration, which for every network here is the order of use.
        names: list[str] = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        if not names:
            kind = type(self.network).__name__
            raise Unsupported(f"{kind} has no linear layer, expected one at its end.", "end it in nn.Linear")
        return names[-1]

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        head = self.network.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise pixels (B, 3, H, W) in [0, 1] for the bare network."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of pixels (B, 3, H, W) in [0, 1]."""
        logits: torch.Tensor = self.network(self.normalise(pixels))
        return logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Input of the last linear layer, (B, D), for pixels (B, 3, H, W) in [0, 1]."""
        seen: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            self.network(self.normalise(pixels))
        finally:
            hook.remove()
        return seen[0]
