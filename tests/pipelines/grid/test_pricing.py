"""Which rates a plan takes, and what it says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.grid import pricing as priced
from pipelines.grid.pricing import pricing
from rd3.errors import BadValue, UnknownName
from rd3.hardware import Hardware
from rd3.planning.calibration import Calibration
from rd3.planning.cost import CPU_THREAD, GPU, PLAIN_CPU_THREAD, shipped_rates
from tracking.ledger.calibrations import keep
from tracking.ledger.object_store import ObjectStore, open_objects


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_objects(tmp_path)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight threads, no GPU, and torch 2.15."""

    def hardware(kind: str | None = None) -> Hardware:
        if kind == "cuda":
            raise BadValue("There is no CUDA device here.")
        return Hardware("cpu", "Chip 9", 8, True)

    monkeypatch.setattr(priced, "hardware", hardware)
    monkeypatch.setattr(priced, "torch_version", lambda: "2.15.0")


def calibration(device: str, torch: str = "2.15.0", **changed: Any) -> Calibration:
    facts = dict(
        kind="cpu", device=device, torch=torch, rd3="0.1", fp32=1e11, bf16=2e11, bytes=1e10, step_s=0.001, auto="bf16",
        networks={}, residual=0.3, runs=9, measured_at="2026-11-26T00:00:00+00:00",
    )  # fmt: skip
    return Calibration(**{**facts, **changed})


def test_without_a_calibration_the_shipped_rates_as_a_range(objects):
    found = pricing(objects)
    assert found.rates == CPU_THREAD and found.devices == 8
    assert "built-in rates" in found.source and "factor of 2.5" in found.source
    assert "Chip 9 with torch 2.15.0" in found.source and "rd3 calibrate" in found.source


def test_the_calibration_of_this_device_and_torch(objects):
    keep(objects, calibration("Chip 9", fp32=7e11))
    found = pricing(objects)
    assert found.rates.fp32 == 7e11
    assert found.source == "calibration of Chip 9 with torch 2.15.0, 2026-11-26"


@pytest.mark.parametrize("other", [("Chip 8", "2.15.0"), ("Chip 9", "2.14.0")])
def test_one_of_another_device_or_torch_is_named_and_not_used(objects, other):
    keep(objects, calibration(*other, fp32=7e11))
    found = pricing(objects)
    assert found.rates == CPU_THREAD
    assert f"not used: {other[0]} with torch {other[1]}" in found.source


def test_another_device_is_used_where_it_is_asked_for(objects):
    keep(objects, calibration("NVIDIA H100 80GB HBM3", "2.14.0", kind="cuda", fp32=7e13))
    found = pricing(objects, "nvidia h100")
    assert found.rates.fp32 == 7e13 and found.rates.start_s == GPU.start_s and found.devices == 1
    assert "which this machine does not have" in found.source and "torch here is 2.15.0" in found.source


def test_a_device_that_nobody_has_calibrated_is_refused(objects):
    with pytest.raises(UnknownName, match="no calibration of a device that starts with 'H100'; it has none"):
        pricing(objects, "H100")
    keep(objects, calibration("Chip 8"))
    keep(objects, calibration("Chip 9"))
    with pytest.raises(UnknownName, match=r"Chip 8 with torch 2\.15\.0"):
        pricing(objects, "H100")
    with pytest.raises(UnknownName, match="2 calibrations of devices that start with 'Chip'"):
        pricing(objects, "Chip")


def test_a_name_that_begins_another_is_that_of_its_own_device(objects):
    for name, speed in (("NVIDIA GeForce RTX 3090", 3e13), ("NVIDIA GeForce RTX 3090 Ti", 4e13)):
        keep(objects, calibration(name, kind="cuda", fp32=speed))
    assert pricing(objects, "nvidia geforce rtx 3090").rates.fp32 == 3e13
    assert pricing(objects, "nvidia geforce rtx 3090 t").rates.fp32 == 4e13


def test_a_gpu_is_priced_as_a_gpu_and_a_cpu_without_bf16_as_such():
    assert shipped_rates("cuda", True).fp32 == GPU.fp32
    assert shipped_rates("cuda", False).auto == "fp32"
    assert shipped_rates("cpu", False) == PLAIN_CPU_THREAD
    assert PLAIN_CPU_THREAD.auto == "fp32" and CPU_THREAD.auto == "bf16"


def test_cuda_where_there_is_none(objects):
    with pytest.raises(BadValue, match="no CUDA device"):
        pricing(objects, "cuda")
