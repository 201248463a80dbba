"""The weights of a trained student, kept as a file of its evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from rd3.datasets import DatasetInfo
from rd3.device import set_memory_format
from rd3.errors import DataCorrupt
from rd3.models import build_network
from rd3.recipe import EvaluationRecipe
from rd3.store import STUDENT, write_atomically


def save_student(network: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a student, in the type in which they were trained (fp32)."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, save(tensors))


def load_student(
    folder: Path, recipe: EvaluationRecipe, info: DatasetInfo, *, device: torch.device, precision: str
) -> nn.Module:
    """The student of an evaluation from its folder, in eval mode on ``device``; takes pixels in [0, 1].

    ``precision``: that of the evaluation's test, which decides the memory format.  Raises :class:`DataCorrupt` if the
    file has other tensors than the recipe's network.
    """
    network = build_network(recipe.student, info.num_classes, recipe.resolution, recipe.normalisation)
    tensors = load_file(folder / STUDENT)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise DataCorrupt(
            f"{folder / STUDENT} does not fit the student: {reason}.", "run the evaluation again"
        ) from None
    network = network.to(device).eval()
    set_memory_format(network, precision)
    return network
