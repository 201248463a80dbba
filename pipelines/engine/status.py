"""The progress of a grid, from the ledger and the log of trials; also for other processes than the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine import trial_log
from rd3.recipe import KINDS, Key
from tracking.ledger.ledger import Ledger

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion


@dataclass(frozen=True)
class GridStatus:
    """``counts``: kind to ``done``, ``running``, ``failed``, ``missing``."""

    counts: dict[str, dict[str, int]]
    running: list[dict[str, Any]] = field(default_factory=list)
    """Recipes that a live process on this machine runs: ``label``, ``key``, ``attempt``, ``since``, ``pid``."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Recipes whose last attempt failed: ``label``, ``key``, ``status``, ``reason``."""
    why: dict[Key, str] = field(default_factory=dict)
    """Why recipes have no result, if known: their own failure, a missing dataset or import, the reason of a parent."""


def grid_status(expansion: Expansion, ledger: Ledger, home: Path) -> GridStatus:
    """The recipes of a grid that are done, running, failed and missing; read-only."""
    last: dict[Key, dict[str, Any]] = {
        event["key"]: event for event in trial_log.events(home) if event["key"] in expansion.recipes
    }
    done = {kind: ledger.keys(kind) for kind in KINDS}
    status = GridStatus({})
    for key, recipe in expansion.recipes.items():
        row = status.counts.setdefault(recipe.kind, dict.fromkeys(("done", "running", "failed", "missing"), 0))
        event = last.get(key, {})
        named = {"label": expansion.label(key), "key": key}
        if key in done[recipe.kind]:
            row["done"] += 1
        elif event.get("event") in ("start", "made") and trial_log.alive(event):
            row["running"] += 1
            status.running.append({**named, "attempt": event["attempt"], "since": event["time"], "pid": event["pid"]})
        elif event.get("event") == "fail":
            row["failed"] += 1
            status.failed.append({**named, "status": event["status"], "reason": event["reason"]})
            status.why[key] = f"{event['status']}: {event['reason']}"
        else:
            row["missing"] += 1
            if reason := _blocked(expansion, key, status):
                status.why[key] = reason
    return status


def _blocked(expansion: Expansion, key: Key, status: GridStatus) -> str:
    """Why a recipe cannot have been run; empty if nothing is known to have prevented it."""
    if key in expansion.blocked or key in expansion.imports:
        return expansion.blocked.get(key) or expansion.imports[key]
    parent = next((parent for _kind, parent in expansion.recipes[key].parents() if parent in status.why), None)
    if parent is None:
        return ""
    if all(one["key"] != parent for one in status.failed):
        return status.why[parent]
    return f"its {expansion.label(parent)} ({parent[:12]}) ended as {status.why[parent]}"
