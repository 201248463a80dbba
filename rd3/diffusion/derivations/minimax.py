"""``minimax``: a diffusion transformer fine-tuned for representativeness and diversity."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rd3.datasets import Dataset, DatasetInfo
from rd3.diffusion.cost import sizes_of
from rd3.diffusion.derivation import Derivation, Progress, register_derivation
from rd3.errors import BadValue, Diverged
from rd3.models import Cost
from rd3.recipe import BackboneRecipe, DerivedRecipe
from rd3.stopwatch import Stopwatch
from rd3.values import PluginSettings

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone

FILE = "changed.safetensors"


class MinimaxTuning(PluginSettings):
    """Settings as in ``run.sh`` and ``train_dit.py`` of the released code."""

    epochs: int = Field(default=8, ge=0)
    """Passes over the training images; 0 leaves the backbone as it is."""
    batch_size: int = Field(default=8, ge=1)
    """Images per optimizer step."""
    lr: float = Field(default=1e-3, gt=0)
    """Constant learning rate of AdamW."""
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the moving average of the weights, from which images are sampled."""
    representativeness: float = Field(default=0.002, ge=0)
    """Weight of the term that pulls predictions towards the least similar real latent of their class."""
    diversity: float = Field(default=0.008, ge=0)
    """Weight of the term that pushes predictions from the most similar earlier prediction of their class."""
    memory: int = Field(default=64, ge=1)
    """Latents kept per class: real ones, and as many predictions."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of images that are trained without their class, for classifier-free guidance."""


@register_derivation("minimax", version=1)
class MinimaxFineTuning(Derivation):
    """Fine-tune biases, class embeddings and scales of a DiT with the two minimax terms; resumes by epoch.

    Source: Gu et al., "Efficient Dataset Distillation via Minimax Diffusion", CVPR 2024; vimar-gu/MinimaxDiffusion
    ``train_dit.py``, ``models.py``, ``run.sh``.
    """

    Settings = MinimaxTuning

    def derive(
        self, recipe: DerivedRecipe, settings: Any, backbone: Backbone, dataset: Dataset, out: Path, progress: Progress
    ) -> dict[str, Any]:
        from safetensors.torch import save_file

        from rd3.diffusion.families.dit import DiT
        from rd3.diffusion.minimax import FineTuning
        from rd3.duration import duration
        from rd3.teacher.checkpoint import CHECKPOINT, Counters, read_checkpoint, write_tensors
        from rd3.teacher.training import within_epochs

        if not isinstance(backbone, DiT):
            raise BadValue(
                f"Minimax fine-tunes a diffusion transformer, and this backbone is a {backbone.family} model.",
                "name a backbone of family dit",
            )
        before = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
        tuning = FineTuning(backbone, settings, recipe, dataset)
        stopwatch, losses = Stopwatch(), list[float]()
        earlier = read_checkpoint(out / CHECKPOINT, progress)
        if earlier is not None and earlier.key == recipe.key:
            tuning.restore(earlier.tensors)
            losses = earlier.counters.curve
            stopwatch.include(earlier.counters.wall_s, earlier.counters.process_s)
        started, first = time.perf_counter(), len(losses)
        for epoch in range(first, settings.epochs):
            note = f"epoch {epoch + 1}/{settings.epochs}"
            losses.append(tuning.epoch(epoch, within_epochs(progress, epoch, settings.epochs, note)))
            if not math.isfinite(losses[-1]):
                raise Diverged(f"The loss of the fine-tuning became {losses[-1]} in epoch {epoch + 1}.", "lower lr")
            so_far = Counters(losses, **stopwatch.spent())
            write_tensors(out / CHECKPOINT, recipe.key, "fp32", tuning.state(), so_far)
            left_s = (settings.epochs - epoch - 1) * (time.perf_counter() - started) / (epoch + 1 - first)
            progress((epoch + 1) / settings.epochs, f"{note}, loss {losses[-1]:.4f}, {duration(left_s)} left")
        tuning.finish()
        after = backbone.transformer.state_dict()
        changed = {name: value for name, value in after.items() if not value.equal(before[name])}
        save_file({name: value.cpu().clone().contiguous() for name, value in changed.items()}, out / FILE)
        (out / CHECKPOINT).unlink(missing_ok=True)
        trained_values = sum(value.numel() for value in tuning.parameters.values())
        return {"final_loss": losses[-1] if losses else 0.0, "trained_values": trained_values, **stopwatch.spent()}

    def cost(self, settings: MinimaxTuning, info: DatasetInfo, forward: Cost) -> Cost:
        # A backward pass costs about two forward passes.
        return 3 * settings.epochs * info.train_count * forward

    def file_bytes(self, settings: MinimaxTuning, info: DatasetInfo, backbone: BackboneRecipe) -> int:
        # An upper bound: scales fold into weights of the first half of the blocks, and the rest that changes is small.
        return sizes_of(backbone).file_bytes // 2
