"""Train a diffusion backbone on a dataset's images, stage by stage and epoch by epoch; resumes when interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rd3.data_checks import check_training_images
from rd3.datasets import Dataset
from rd3.device import autocast, repeatable_kernels, resolve_precision, usable_device
from rd3.diffusion.averaging import AveragedTraining
from rd3.diffusion.backbone import BACKBONES, Inputs, Stage, content_digest, write_backbone
from rd3.diffusion.derivation import Progress
from rd3.duration import duration
from rd3.errors import BadValue, Diverged
from rd3.recipe import BackboneRecipe
from rd3.seeding import generator
from rd3.stopwatch import Stopwatch
from rd3.teacher.checkpoint import CHECKPOINT, Counters, read_checkpoint, write_tensors
from rd3.teacher.training import Images, within_epochs

LOCAL = "trained by RD3: a small local model, not a published one"
"""What every record says of a backbone that was trained here."""


def train(
    recipe: BackboneRecipe,
    dataset: Dataset,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
) -> dict[str, Any]:
    """Train the recipe's model, write its folder, and return the figures for the ledger.

    Weights are averaged over the steps of each stage (EMA), and the averages are kept.  Random numbers are a function
    of seed, stage and epoch, so that a resumed training equals an uninterrupted one.  Raises :class:`Diverged` with the
    first epoch whose loss is not finite.
    """
    stopwatch = Stopwatch()
    device, out = usable_device(device), Path(out)
    seed = _checked(recipe, dataset)
    precision = resolve_precision(device, recipe.precision or "auto")
    backbone = BACKBONES.get(recipe.family).create(recipe.config, dataset.info, generator(seed, "init")).to(device)
    runs = [_StageTraining(stage, seed, precision, device) for stage in backbone.stages(recipe)]
    done = _restore(out / CHECKPOINT, recipe.key, precision, runs, progress)
    stopwatch.include(done.wall_s, done.process_s)
    images = Images(dataset, recipe.data.split, device)
    total_epochs = sum(run.stage.training.epochs for run in runs)
    finished = sum(map(len, done.curve.values()))
    for run in runs:
        started, before = time.perf_counter(), finished
        rows = done.curve.setdefault(run.stage.name, [])
        for epoch in range(len(rows), run.stage.training.epochs):
            note = f"{run.stage.name} epoch {epoch + 1}/{run.stage.training.epochs}"
            report = within_epochs(progress, finished, total_epochs, note)
            with repeatable_kernels():
                rows.append(run.epoch(epoch, images, report))
            finished += 1
            state = {f"{each.stage.name}/{name}": value for each in runs for name, value in each.state().items()}
            write_tensors(out / CHECKPOINT, recipe.key, precision, state, Counters(done.curve, **stopwatch.spent()))
            left_s = (total_epochs - finished) * (time.perf_counter() - started) / (finished - before)
            progress(finished / total_epochs, f"{note}, loss {rows[-1]['loss']:.4f}, {duration(left_s)} left")
        # Also for a stage that an earlier attempt finished: checkpoints have weights that are not averaged yet, and
        # nothing that is computed from the averages.
        run.finish()
        run.stage.after(images)
    content = content_digest(backbone.frozen())
    write_backbone(out, backbone, recipe, origin=LOCAL, content=content, ran_precision=precision, curve=done.curve)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return {
        "parameters": backbone.size,
        "epochs": total_epochs,
        "final_loss": done.curve[runs[-1].stage.name][-1]["loss"],
        "ran_precision": precision,
        **stopwatch.spent(),
    }


def _checked(recipe: BackboneRecipe, dataset: Dataset) -> int:
    """The seed, once recipe and dataset fit together."""
    if recipe.training is None or recipe.seed is None:
        raise BadValue(
            f"Backbone {recipe.key[:12]} cannot be trained: its recipe has no training settings or no seed.",
            "import it",
        )
    check_training_images(recipe, dataset)
    return recipe.seed


class _StageTraining(AveragedTraining):
    """The training of the networks of one stage."""

    def __init__(self, stage: Stage, seed: int, precision: str, device: torch.device):
        # Eval mode: models drop classes as their stage draws them, and have no other dropout.
        parameters = dict(stage.networks.eval().requires_grad_(True).named_parameters())
        super().__init__(parameters, weight_decay=stage.training.weight_decay, ema=stage.training.ema)
        self.stage, self.seed, self.precision, self.device = stage, seed, precision, device
        self._inputs: Inputs | None = None

    def epoch(self, epoch: int, images: Images, report: Callable[[float], None]) -> dict[str, float]:
        """One pass over the training images; returns its row of the curve.  ``report`` gets the share that is done."""
        training, name = self.stage.training, self.stage.name
        if self._inputs is None:
            self._inputs = self.stage.inputs(images, training.flip)
        order = torch.randperm(len(images.labels), generator=generator(self.seed, name, "order", epoch))
        stream = generator(self.seed, name, "noise", epoch)
        batches, losses = order.split(training.batch_size), []
        for number, batch in enumerate(batches):
            inputs, labels = self._inputs(batch, stream), images.labels[batch.to(self.device)]
            with autocast(self.device, self.precision):
                loss = self.stage.loss(inputs, labels, stream)
            warmup = min(1.0, (epoch * len(batches) + number + 1) / max(training.warmup_steps, 1))
            self.step(loss, training.lr * warmup)
            losses.append(loss.detach())
            report((number + 1) / len(batches))
        values = torch.stack(losses).tolist()
        mean = sum(value * len(batch) for value, batch in zip(values, batches, strict=True)) / len(order)
        if not math.isfinite(mean):
            raise Diverged(
                f"The loss of {name} became {mean} in epoch {epoch + 1} of {training.epochs}.",
                "lower the learning rate or lengthen the warm-up",
            )
        return {"epoch": epoch + 1, "loss": mean}

    def finish(self) -> None:
        super().finish()
        self.stage.networks.requires_grad_(False)


def _restore(path: Path, key: str, precision: str, runs: list[_StageTraining], progress: Progress) -> Counters:
    """Restore the state of an earlier attempt at this recipe and precision, and return its progress."""
    found = read_checkpoint(path, progress)
    if found is None or (found.key, found.precision) != (key, precision):
        return Counters(curve={})
    for run in runs:
        # Tensors of other stages keep their prefix, and so are none of this one's.
        run.restore({name.removeprefix(f"{run.stage.name}/"): value for name, value in found.tensors.items()})
    return found.counters
