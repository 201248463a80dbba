"""Record what a training says about every training image, epoch by epoch; it can be interrupted and resumed.

The logits recorded are those of the training itself: of augmented images, in train mode, before the step that uses
them, as forgetting events and AUM are defined.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch.nn import functional as F

from rd3.datasets import Dataset
from rd3.device import usable_device
from rd3.errors import DataCorrupt
from rd3.recipe import Key, TrainingDynamicsRecipe
from rd3.store import write_atomically, write_curve
from rd3.teacher.artifact import CURVE
from rd3.teacher.checkpoint import CHECKPOINT, read_checkpoint
from rd3.teacher.training import Observer, fit

FILE = "dynamics.safetensors"
EPOCHS = "epochs"
"""Folder of the finished epochs during a training."""


@dataclass(frozen=True)
class Dynamics:
    """What was recorded, in the order of the split; NaN where an epoch left an image out."""

    margins: np.ndarray
    """(E, N) float32: logit of the true class minus the largest other logit; an image is classified correctly where
    this is positive."""
    errors: np.ndarray
    """(E, N) float32: Euclidean norm of the softmax minus the one-hot label."""


def margins_and_errors(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) margins and (B,) errors, as in :class:`Dynamics`, of logits (B, C) and labels (B,)."""
    hot = F.one_hot(labels, logits.shape[1]).bool()
    own = logits.gather(1, labels[:, None])[:, 0]  # indexing by a mask would wait for the device
    margins = own - logits.masked_fill(hot, -torch.inf).amax(dim=1)
    return margins, (logits.softmax(dim=1) - hot.to(logits.dtype)).norm(dim=1)


class Recorder(Observer):
    """Keeps the margins and errors of an epoch on the device, and writes them to a file at its end."""

    def __init__(self, folder: Path, images: int, device: torch.device):
        self.folder = folder
        self.table = torch.full((2, images), torch.nan, device=device)

    def step(self, positions: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.table[:, positions.to(self.table.device)] = torch.stack(margins_and_errors(logits, labels))

    def finish(self, epoch: int) -> None:
        write_atomically(_epoch_file(self.folder, epoch), save({"table": self.table.cpu()}))
        self.table.fill_(torch.nan)


def record(
    recipe: TrainingDynamicsRecipe,
    dataset: Dataset,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, note: None,
) -> dict[str, Any]:
    """Train the recipe's network, write what was recorded to ``out``, and return the figures for the ledger.

    Resumes, raises and deviates as :func:`rd3.teacher.training.fit` does.  The network is not kept.
    """
    device, out = usable_device(device), Path(out)
    images = len(dataset.labels("fit" if recipe.data.split == "fit" else "train"))
    recorder = Recorder(out / EPOCHS, images, device)
    _drop_unrecorded(out, recipe.key, progress)
    _network, precision, trained = fit(recipe, dataset, out, device=device, observer=recorder, progress=progress)
    paths = [_epoch_file(out / EPOCHS, epoch) for epoch in range(len(trained.curve))]
    margins, errors = torch.stack([load_file(path)["table"] for path in paths], dim=1)
    named = {"margins": margins.contiguous(), "errors": errors.contiguous()}
    write_atomically(out / FILE, save(named, {"key": recipe.key}))
    write_curve(out / CURVE, trained.curve)
    (out / CHECKPOINT).unlink()  # before the epochs: without them it could not be resumed
    shutil.rmtree(out / EPOCHS)
    return {
        "images": images,
        "ran_precision": precision,
        "epochs": len(trained.curve),
        "final_loss": trained.curve[-1]["loss"],
        "train_top1_pct": trained.curve[-1]["train_top1_pct"],
        "wall_s": trained.wall_s,
        "process_s": trained.process_s,
    }


def _epoch_file(folder: Path, epoch: int) -> Path:
    """The file of an epoch, counted from 0."""
    return folder / f"{epoch:05d}.safetensors"


def _drop_unrecorded(out: Path, key: Key, progress: Callable[[float, str], None]) -> None:
    """Delete a checkpoint if an epoch before it lacks its file: a machine may be lost while it uploads them."""
    found = read_checkpoint(out / CHECKPOINT, lambda fraction, note: None)
    if found is None or found.key != key:
        return
    lacking = [epoch for epoch in range(len(found.counters.curve)) if not _is_whole(_epoch_file(out / EPOCHS, epoch))]
    if lacking:
        progress(0.0, f"restarting: what was recorded in epoch {lacking[0] + 1} is missing or damaged")
        (out / CHECKPOINT).unlink()


def _is_whole(path: Path) -> bool:
    """Whether a file is there and has its full length."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError):
        return False
    return True


def load(folder: Path, key: Key) -> Dynamics:
    """What was recorded under the recipe of this key; raises :class:`DataCorrupt` for the file of another recipe."""
    with safe_open(folder / FILE, framework="np") as stored:
        found = stored.metadata()["key"]
        if found != key:
            raise DataCorrupt(
                f"{folder / FILE} was recorded by recipe {found[:12]}, expected {key[:12]}.", "record it again"
            )
        return Dynamics(stored.get_tensor("margins"), stored.get_tensor("errors"))
