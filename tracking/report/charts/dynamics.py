"""Accuracy on the synthetic and on the test images over the epochs of training (Figure 9 of the RD3 paper)."""

from __future__ import annotations

from rd3.component import changes_text
from tracking.report.charts._base import Drawing, register_chart
from tracking.report.figures import MOST_PANELS, panels_chart
from tracking.report.query import tests_by_epoch
from tracking.report.results import Results
from tracking.report.sheets import Fetch
from tracking.report.tables import differences
from tracking.runs.fields import read_curve


@register_chart("dynamics")
def dynamics(results: Results, fetch: Fetch) -> Drawing | None:
    """Accuracy on synthetic and test images over the epochs, one panel per score; for grids that test in between."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}  # (epoch, accuracy in per cent)
    left_out: set[str] = set()
    rows = [row for row in results.rows if row["status"] == "done"]
    settings = differences(
        [(row["student"], row["teacher"], row["protocol"], f"{row['labels']} labels", row["setting"]) for row in rows]
    )
    for row, setting in zip(rows, settings, strict=True):
        entry = results.find("evaluation", row["evaluation"])
        overrides = {name: row["overrides"][name] for name in row["overrides"] if name not in ("test_epochs", "labels")}
        texts = (row["method"], row["dataset"], f"IPC {row['ipc']}", setting, changes_text(overrides | row["varied"]))
        title = ", ".join(filter(None, texts))
        tests = tests_by_epoch(entry.result) if entry is not None else []
        if len(tests) < 2 or title in panels:
            continue
        if len(panels) == MOST_PANELS:
            left_out.add(title)
            continue
        curve = read_curve(fetch("evaluation", row["evaluation"]))
        training = [(point["epoch"], point["train_top1_pct"]) for point in curve]
        panels[title] = {"synthetic images, augmented": training, "test images": tests}
    if not panels:
        return None
    drawn = panels_chart(panels, x="epoch", y="top-1 %", name="dynamics")
    caption = (
        "One student each, of the first seeds.  With CutMix the accuracy on synthetic images counts the base image's "
        "label.  Tests before the last epoch are diagnostics."
    )
    if left_out:
        caption += f"  {len(left_out)} more are left out."
    return Drawing("Training dynamics", caption, drawn)
