"""``rd3 calibrate``, and what ``rd3 plan`` and ``rd3 run`` say and refuse about costs."""

from __future__ import annotations

import json

import pytest
import torch

import rd3.planning.calibration
from pipelines.commands.grid import hours, size
from rd3.device import resolve_precision
from rd3.hardware import hardware, torch_version
from rd3.planning.calibration import Calibration


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that were measured: made up, as a real one takes 20 s."""
    asked: list[str] = []

    def calibrate(device: str) -> Calibration:
        asked.append(device)
        return Calibration(
            kind="cpu", device=hardware("cpu").name, torch=torch_version(), rd3="0.1", fp32=1e14, bf16=1e14,
            bytes=1e14, step_s=0.0, auto="bf16", networks={}, residual=0.1, runs=3, measured_at="2026-11-26T00:00:00",
        )  # fmt: skip

    monkeypatch.setattr(rd3.planning.calibration, "calibrate", calibrate)
    return asked


def test_a_plan_measures_nothing_and_a_calibration_moves_it(home, rd3, measured):
    _code, before, _err = rd3("plan", "demo")
    assert "cost estimates from built-in rates" in before and measured == []
    assert before.strip().endswith(f"precision auto is {resolve_precision(torch.device('cpu'), 'auto')} there")
    assert not list(home.rglob("calibrations/*"))
    code, out, _err = rd3("calibrate", "--device", "cpu")
    assert code == 0 and measured == ["cpu"] and "100,000 GFLOP/s at fp32" in out
    _code, after, _err = rd3("plan", "demo", "--json")
    cost = json.loads(after)["cost"]
    assert cost["priced"].startswith("calibration of") and measured == ["cpu"]
    assert cost["process_s"] == pytest.approx(19 * 0.5, rel=0.05), "next to nothing but 19 starts"


def test_a_plan_says_hours_time_disk_and_money(rd3):
    code, out, _err = rd3("plan", "demo", "--devices", "3", "--rate", "2.5")
    assert code == 0
    for part in ("device-hours (teachers 0.0", "with 3 devices", "of disk space", "at 2.5 per device-hour", "probably"):
        assert part in out
    code, plain, _err = rd3("plan", "demo", "--rate", "1000", "--json")
    found = json.loads(plain)
    assert found["money"] == pytest.approx(found["cost"]["process_s"] / 3.6, abs=0.01)


@pytest.mark.parametrize("more", [[], ["--address", "10.0.0.1:6379"]])
def test_a_run_above_its_hours_is_refused_before_anything_is_written(home, rd3, more):
    code, out, err = rd3("run", "demo", "--max-hours", "0.001", *more)
    assert (code, out) == (2, "")
    assert "The rest of demo takes about 0.0" in err and "more than --max-hours 0.001" in err
    assert not (home / "mlflow.db").exists() and not (home / "artifacts").exists()


def test_a_device_that_nobody_calibrated(rd3):
    code, _out, err = rd3("plan", "demo", "--device", "NVIDIA H100")
    assert code == 2 and "has no calibration of a device that starts with 'NVIDIA H100'" in err


def test_how_amounts_are_written():
    assert [hours(seconds) for seconds in (36, 3600 * 3.14, 3600 * 1234.5)] == ["0.01", "3.1", "1,234"]
    assert [size(count) for count in (10, 4.4e6, 1.25e9)] == ["1 MB", "4 MB", "1.2 GB"]
