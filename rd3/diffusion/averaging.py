"""Training of a diffusion model's parameters by AdamW, and the moving averages of their values, which are kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class AveragedTraining:
    """Parameters, their optimizer, and the exponential moving average (EMA) of their values, with decay ``ema``."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, weight_decay: float, ema: float):
        self.parameters, self.ema = parameters, ema
        self.optimizer = torch.optim.AdamW(parameters.values(), weight_decay=weight_decay)
        self.average = [value.detach().clone() for value in parameters.values()]

    def step(self, loss: torch.Tensor, lr: float) -> None:
        """One step of AdamW down the gradient of a scalar ``loss``."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.parameters.values()), 1 - self.ema)

    @torch.no_grad()
    def finish(self) -> None:
        """Replace the parameters by their averages."""
        for value, average in zip(self.parameters.values(), self.average, strict=True):
            value.copy_(average)

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters, averages and Adam's moments, by name."""
        found: dict[str, torch.Tensor] = {}
        for (name, value), average in zip(self.parameters.items(), self.average, strict=True):
            found |= {f"weights.{name}": value, f"average.{name}": average}
            found |= {f"adam.{name}.{moment}": kept for moment, kept in self.optimizer.state[value].items()}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put :meth:`state`, which may be among other tensors, back in place."""
        for (name, value), average in zip(self.parameters.items(), self.average, strict=True):
            value.copy_(state[f"weights.{name}"])
            average.copy_(state[f"average.{name}"])
            for key in (key for key in state if key.rpartition(".")[0] == f"adam.{name}"):
                moment = key.rpartition(".")[2]
                # AdamW counts steps on the CPU unless it is fused or captured.
                self.optimizer.state[value][moment] = state[key].to("cpu" if moment == "step" else value.device)
