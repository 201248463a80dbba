"""Learning rate over the epochs of every protocol in a grid (Figure 6 of the RD3 paper)."""

from __future__ import annotations

import json
from typing import Any

from rd3.evaluation.schedule import rate_factor
from rd3.protocol import EvalProtocol
from tracking.report.charts._base import Drawing, register_chart
from tracking.report.figures import panels_chart
from tracking.report.results import Results
from tracking.report.sheets import Fetch
from tracking.report.tables import differences

_FIELDS = ("lr", "epochs", "schedule", "zeta", "drop_at", "drop_factor", "warmup_epochs", "warmup_start")
_MOST = 9
"""Lines of a chart at most."""


@register_chart("schedules")
def schedules(results: Results, fetch: Fetch) -> Drawing | None:
    """Learning rate over the epochs, one line per schedule; for grids with several."""
    resolved = [row for row in results.frame["resolved"] if row is not None]
    found = {json.dumps([protocol.get(name) for name in _FIELDS]): protocol for protocol in resolved}
    read = [EvalProtocol.model_validate_json(json.dumps(plain)) for plain in found.values()]
    # Older results lack fields that were added since: read, they are equal to those that state them.
    protocols = list({tuple(getattr(each, name) for name in _FIELDS): each for each in read}.values())
    if not 2 <= len(protocols) <= _MOST:
        return None
    labels = differences([[f"{name} {_text(getattr(each, name))}" for name in _FIELDS] for each in protocols])
    lines = dict(zip(labels, map(_rates, protocols), strict=True))
    drawn = panels_chart({"": lines}, x="epoch", y="learning rate", name="schedules")
    return Drawing("Learning rate", "The learning rate is constant within an epoch.", drawn)


def _rates(protocol: EvalProtocol) -> list[tuple[float, float]]:
    """(epoch from 1, learning rate)."""
    return [(epoch + 1, protocol.lr * rate_factor(protocol, epoch)) for epoch in range(protocol.epochs)]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
