"""Calibrations are found by device and torch, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd3.errors import DataCorrupt
from rd3.planning.calibration import Calibration
from tracking.ledger.calibrations import find, keep, known
from tracking.ledger.object_store import open_objects


def calibration(device: str = "Chip (R) 9, model 3", torch: str = "2.15.0", day: int = 26) -> Calibration:
    return Calibration(
        kind="cpu", device=device, torch=torch, rd3="0.1", fp32=1e11, bf16=2e11, bytes=1e10, step_s=0.001, auto="bf16",
        networks={}, residual=0.3, runs=9, measured_at=f"2026-11-{day:02}T00:00:00+00:00",
    )  # fmt: skip


def test_found_again_for_its_device_and_torch_alone(tmp_path: Path):
    objects = open_objects(tmp_path)
    assert keep(objects, calibration()) == "calibrations/Chip-R-9-model-3-2.15.0.json"
    assert find(objects, "Chip (R) 9, model 3", "2.15.0") == calibration()
    assert find(objects, "Chip (R) 9, model 3", "2.16.0") is None
    assert find(objects, "Chip (R) 8, model 3", "2.15.0") is None


def test_a_newer_one_replaces_an_older_one(tmp_path: Path):
    objects = open_objects(tmp_path)
    keep(objects, calibration(day=1))
    keep(objects, calibration(day=2))
    keep(objects, calibration("Other", day=3))
    assert [one.measured_at[8:10] for one in known(objects)] == ["03", "02"]


def test_a_damaged_one_is_told(tmp_path: Path):
    objects = open_objects(tmp_path)
    name = keep(objects, calibration())
    objects.put(name, b"{")
    with pytest.raises(DataCorrupt, match=r"cannot be read.*rd3 calibrate"):
        known(objects)
