"""Charts of learning rates and of training dynamics: their lines against the closed form and the recorded curves."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import Table, parquet

from rd3.protocol import resolve_protocol
from rd3.store import Entry
from tracking.report.charts import CHARTS, Drawing, _base, drawings, dynamics, schedules
from tracking.report.results import Results


def resolved(**changed):
    overrides = {"zeta": 1.0, "epochs": 40} | changed
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=overrides)
    return protocol.model_dump(mode="json")


def results(rows, find=lambda kind, key: None) -> Results:
    return Results(find, pd.DataFrame(rows, dtype=object), [])


def drawn(monkeypatch, module, name: str, found: Results, fetch=lambda kind, key: Path()):
    """What the chart hands to the drawing function, and the drawing."""
    seen = {}
    real = getattr(module, name)

    def spy(lines, **options):
        seen.update(lines)
        return real(lines, **options)

    monkeypatch.setattr(module, name, spy)
    return seen, CHARTS.get(module.__name__.rsplit(".", 1)[1])(found, fetch)


def test_schedules_follow_the_closed_form(monkeypatch):
    rows = [{"resolved": resolved(zeta=zeta)} for zeta in (1.0, 2.0, 1.0)] + [{"resolved": None}]
    panels, chart = drawn(monkeypatch, schedules, "panels_chart", results(rows))
    lines = panels[""]
    assert list(lines) == ["zeta 1", "zeta 2"]
    for label, zeta in (("zeta 1", 1.0), ("zeta 2", 2.0)):
        expected = [1e-3 * (1 + math.cos(math.pi * i / (zeta * 40))) / 2 for i in range(40)]
        assert [y for _x, y in lines[label]] == pytest.approx(expected)
        assert [x for x, _y in lines[label]] == list(range(1, 41))
    assert chart is not None and chart.svg.startswith(b"<svg")


def test_schedules_that_differ_in_their_drops_or_their_warm_up_are_two_lines(monkeypatch):
    steps = {"schedule": "multistep", "drop_factor": 0.1}
    rows = [{"resolved": resolved(**steps, drop_at=[share])} for share in (0.5, 0.75)]
    rows += [{"resolved": resolved(schedule="multistep", drop_at=[0.5], drop_factor=0.5)}]
    lines, _chart = drawn(monkeypatch, schedules, "panels_chart", results(rows))
    assert list(lines[""]) == [f"drop_at {at}, drop_factor {by}" for at, by in ((0.5, 0.1), (0.75, 0.1), (0.5, 0.5))]
    for line, (drop, factor) in zip(lines[""].values(), ((20, 0.1), (30, 0.1), (20, 0.5)), strict=True):
        assert [rate for _x, rate in line] == pytest.approx([1e-3] * drop + [1e-3 * factor] * (40 - drop))
    rows = [{"resolved": resolved(**steps, drop_at=at)} for at in ([2 / 3, 5 / 6], [0.5])]
    lines, _chart = drawn(monkeypatch, schedules, "panels_chart", results(rows))
    assert list(lines[""]) == ["drop_at 0.666667, 0.833333", "drop_at 0.5"]
    rows = [{"resolved": resolved(warmup_epochs=5, warmup_start=start)} for start in (0.01, 0.1)]
    lines, _chart = drawn(monkeypatch, schedules, "panels_chart", results(rows))
    assert {label: line[0] for label, line in lines[""].items()} == {
        "warmup_start 0.01": (1, pytest.approx(1e-5)), "warmup_start 0.1": (1, pytest.approx(1e-4)),
    }  # fmt: skip


def test_one_schedule_needs_no_chart():
    assert CHARTS.get("schedules")(results([{"resolved": resolved()}] * 2), lambda kind, key: Path()) is None
    older = {name: value for name, value in resolved().items() if name != "warmup_epochs"}
    rows = [{"resolved": resolved()}, {"resolved": older}]
    assert CHARTS.get("schedules")(results(rows), lambda kind, key: Path()) is None


def test_dynamics_shows_the_recorded_curve_and_the_tests(monkeypatch, tmp_path):
    curve = [{"epoch": float(epoch), "loss": 1.0, "lr": 1e-3, "train_top1_pct": 10.0 * epoch} for epoch in (1, 2, 3)]
    parquet.write_table(Table.from_pylist(curve), tmp_path / "curve.parquet")
    result = {
        "diagnostic_top1_pct_epoch_1": 11.0,
        "diagnostic_top1_pct_epoch_2": 22.0,
        "epochs_run": 3,
        "top1_pct": 25.0,
    }
    entry = Entry(kind="evaluation", key="e", recipe={}, result=result)
    row = {"method": "rded", "dataset": "digits", "ipc": 1, "evaluation": "e", "status": "done", "overrides": {}}
    row |= {"student": "resnet18", "teacher": "resnet18", "protocol": "rd3", "labels": "soft", "setting": ""}
    row |= {"varied": {}}
    other = row | {"evaluation": None, "status": "missing", "method": "random"}
    found = results([other, row, row], lambda kind, key: entry if key == "e" else None)
    panels, chart = drawn(monkeypatch, dynamics, "panels_chart", found, lambda kind, key: tmp_path)
    assert list(panels) == ["rded, digits, IPC 1"]
    lines = panels["rded, digits, IPC 1"]
    assert lines["test images"] == [(1, 11.0), (2, 22.0), (3, 25.0)]
    assert lines["synthetic images, augmented"] == [(1.0, 10.0), (2.0, 20.0), (3.0, 30.0)]
    assert chart is not None and b"rded, digits, IPC 1" in chart.svg
    found = results([row, row | {"labels": "hard"}, row | {"varied": {"lr": 0.1}}], lambda kind, key: entry)
    panels, _chart = drawn(monkeypatch, dynamics, "panels_chart", found, lambda kind, key: tmp_path)
    assert list(panels) == [
        f"rded, digits, IPC 1, {rest}" for rest in ("soft labels", "hard labels", "soft labels, lr=0.1")
    ]


def test_a_chart_that_fails_says_why(monkeypatch):
    def fails(found, fetch):
        raise RuntimeError("no ink")

    class Registered(dict):
        def broken(self):
            return {}

    monkeypatch.setattr(_base, "CHARTS", Registered(ours=fails))
    [drawing] = drawings(results([]), lambda kind, key: Path())
    assert drawing == Drawing("ours", drawing.caption, b"")
    assert drawing.caption.startswith("Not drawn: RuntimeError: no ink (test_charts.py")
