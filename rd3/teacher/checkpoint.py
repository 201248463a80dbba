"""The state of a training between two epochs, in one file that is written atomically."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from rd3.store import write_atomically
from rd3.tensor_bytes import sha256_of

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Counters:
    """Progress of a training: its curve, and the time of all attempts, in seconds."""

    curve: Any = field(default_factory=list)
    """One row per finished epoch; of a training in stages, such a list by the name of each."""
    wall_s: float = 0.0
    process_s: float = 0.0


def write_checkpoint(
    path: Path, key: str, precision: str, network: nn.Module, optimizer: torch.optim.Optimizer, counters: Counters
) -> None:
    """Write weights, buffers, momentum and counters, with the recipe's key and the precision of the training."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    write_tensors(path, key, precision, tensors, counters)


def write_tensors(path: Path, key: str, precision: str, tensors: dict[str, torch.Tensor], counters: Counters) -> None:
    """Write tensors and counters, with the recipe's key and the precision of the training."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"key": key, "precision": precision, "counters": json.dumps(asdict(counters))}
    write_atomically(path, save(plain, {**metadata, "sha256": _digest(metadata, plain)}))


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over metadata, names, types, shapes and values."""
    parts: list[str | torch.Tensor] = [json.dumps(metadata, sort_keys=True)]
    for name, value in sorted(tensors.items()):
        parts += [f"{name} {value.dtype} {tuple(value.shape)}", value]
    return sha256_of(parts)


@dataclass
class Checkpoint:
    """What a file holds of a training."""

    key: str
    """Of the recipe."""
    precision: str
    counters: Counters
    tensors: dict[str, torch.Tensor]

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, buffers and momentum back, in place."""
        weights = {name: value for name, value in self.tensors.items() if name.startswith("network.")}
        network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
        for name, parameter in network.named_parameters():
            if f"momentum.{name}" in self.tensors:
                # In the parameter's memory format, like a buffer created by the optimizer.
                buffer = torch.empty_like(parameter).copy_(self.tensors[f"momentum.{name}"])
                optimizer.state[parameter]["momentum_buffer"] = buffer.detach()


def read_checkpoint(path: Path, progress: Callable[[float, str], None]) -> Checkpoint | None:
    """Read a checkpoint; None if the file does not exist or is damaged, which is reported through ``progress``."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        progress(0.0, f"restarting: {path.name} cannot be read ({error})")
        return None
    digest = metadata.pop("sha256", None)  # none in checkpoints of earlier versions
    if digest is not None and digest != _digest(metadata, tensors):
        progress(0.0, f"restarting: {path.name} is damaged")
        return None
    counters = metadata.get("counters") or metadata["done"]  # the name in checkpoints of backbones of earlier versions
    return Checkpoint(metadata["key"], metadata.get("precision", ""), Counters(**json.loads(counters)), tensors)
