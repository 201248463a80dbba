"""The result of post-evaluation: headline metric, training curve and cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rd3.store import write_curve


@dataclass(frozen=True)
class EvalResult:
    """Result of one student, trained and tested."""

    tested_on: str
    """Split: ``test`` or ``validation``."""
    ran_precision: str
    """``bf16`` or ``fp32``: the precision used on this device."""
    correct: int
    """Correct predictions on all tested images after the last epoch: the headline metric, as a count."""
    tested: int
    """Number of test images."""
    top1_pct: float
    """Top-1 accuracy in per cent (0-100)."""
    per_class_correct: list[int]
    """Correct predictions by class, in class order."""
    final_loss: float
    """Training loss of the last epoch, averaged over its images."""
    epochs_run: int
    curve: list[dict[str, float]]
    """One row per epoch: ``epoch`` from 1, ``loss`` (mean over images), ``lr``, ``train_top1_pct`` (on the
    augmented images during training; those of CutMix and MixUp count by the base image's label)."""
    diagnostics: dict[int, float]
    """Epoch to top-1 accuracy in per cent for the protocol's ``test_epochs``; never the headline metric."""
    wall_s: float
    """Wall time of training and testing, in seconds."""
    process_s: float
    """CPU time of the process, in seconds."""
    peak_mib: float
    """Peak memory in MiB: of the device on CUDA, otherwise of the whole process."""
    image_steps: int | None = None
    """Images that the student saw in training, over all epochs; None in results of earlier versions."""
    label_bytes: int | None = None
    """Bytes of stored soft labels, or of the set's own: 0 for hard labels; None if the teachers label in training."""

    def flat(self) -> dict[str, Any]:
        """Scalar figures by name, for a ledger entry; those without a value are left out."""
        skipped = ("per_class_correct", "curve", "diagnostics")
        figures = {name: value for name, value in asdict(self).items() if name not in skipped and value is not None}
        return figures | {f"diagnostic_top1_pct_epoch_{epoch}": value for epoch, value in self.diagnostics.items()}

    def write(self, folder: Path) -> None:
        """Write ``result.json`` (everything except the curve) and ``curve.parquet`` into an existing folder."""
        plain = asdict(self)
        curve = plain.pop("curve")
        (folder / "result.json").write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
        write_curve(folder / "curve.parquet", curve)
