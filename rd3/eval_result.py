"""What post-evaluation gives: the headline, the curve, and what it cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EvalResult:
    """One student, trained and tested."""

    tested_on: str
    ran_precision: str
    """``bf16`` or ``fp32``: what the protocol's precision meant on this device."""
    correct: int
    """Right predictions on the whole test split after the last epoch: the headline metric, as a count."""
    tested: int
    top1_pct: float
    per_class_correct: list[int]
    final_loss: float
    """Mean over the images of the last epoch."""
    epochs_run: int
    curve: list[dict[str, float]]
    """A row an epoch: ``epoch`` from 1, ``loss`` (mean over images), ``lr``, ``train_top1_pct`` (base labels)."""
    diagnostics: dict[int, float]
    """Epoch to top-1 accuracy (%) for the protocol's ``test_epochs``; never the headline."""
    wall_s: float
    process_s: float
    peak_mib: float
    """Device memory on CUDA; elsewhere the high-water mark of the whole process."""

    def flat(self) -> dict[str, Any]:
        """Plain figures, for a ledger entry."""
        skipped = ("per_class_correct", "curve", "diagnostics")
        figures = {name: value for name, value in asdict(self).items() if name not in skipped}
        return figures | {f"diagnostic_top1_pct_epoch_{epoch}": value for epoch, value in self.diagnostics.items()}

    def write(self, folder: Path) -> None:
        """Write ``result.json`` (all but the curve) and ``curve.parquet`` into an existing folder."""
        import pyarrow as pa
        from pyarrow import parquet

        plain = asdict(self)
        curve = plain.pop("curve")
        (folder / "result.json").write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
        parquet.write_table(pa.Table.from_pylist(curve), folder / "curve.parquet")
