"""The plan of a grid: what is reused, what would run, what is blocked, and the cost.

Reads the ledger, with one listing per kind, and looks whether files exist; runs nothing and writes no results.  A file
that a run would need is verified, for which a remote one is downloaded to the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from pipelines.grid.expand import Expansion
from pipelines.grid.queue import Demand, RecipeQueue, simulated_wall_s
from pipelines.settings import Session
from rd3.datasets import DatasetInfo
from rd3.errors import DataCorrupt, DataMissing, TrackingUnavailable
from rd3.planning.cached_logits import LogitsForecast, forecast_logits
from rd3.planning.cost import CPU_THREAD, Rates, Work, extent
from rd3.planning.forecast import FORECASTS, artifact_bytes, work
from rd3.plugins import other_code
from rd3.recipe import KINDS, EvaluationRecipe, Key, Recipe, topological
from rd3.store import STUDENT, Entry
from tracking.ledger.ledger import Ledger
from tracking.place import Place

Status = Literal["reuse", "run", "blocked", "unsupported"]
STATUSES: tuple[Status, ...] = ("reuse", "run", "blocked", "unsupported")


class Item(NamedTuple):
    """One recipe of the grid, or one unsupported pair of set and student (``key`` None)."""

    key: Key | None
    kind: str
    label: str
    status: Status
    reason: str = ""
    cost_s: float = 0.0
    """Estimated CPU or GPU time on one device in seconds; 0 unless it runs."""
    spread: float = 1.0
    """Uncertainty factor: it probably takes between ``cost_s`` divided by this and ``cost_s`` times this."""
    disk_bytes: int = 0
    """Size of its artifact; 0 unless it runs."""


@dataclass(frozen=True)
class Plan:
    """Items in execution order: parents before children."""

    grid: str
    items: list[Item]
    stale: list[tuple[str, Key]] = field(default_factory=list)
    """Needed entries whose artifact is missing or damaged: a run removes them from the ledger before it starts."""
    rerun_for_weights: frozenset[Key] = frozenset()
    """Evaluations with a result that run again because it was stored without the weights of their student."""
    cells: int = 0
    flops: float = 0.0
    """Floating-point operations of all recipes that run."""
    slots: int = 1
    """Number of devices (CPU threads or GPUs), with one recipe each."""
    wall_s: float = 0.0
    """Expected wall time on ``slots`` devices, with recipes in the order of a run."""
    chain_s: float = 0.0
    """Duration of the longest chain of dependent recipes: a lower bound for any number of devices."""
    priced: str = ""
    """Source of the time estimates: a calibration, or built-in rates."""
    cached_logits: LogitsForecast | None = None
    """What caching teacher logits would save; None if they are not to be cached."""

    def keys(self, status: Status) -> list[Key]:
        """Recipes with that status, parents before children."""
        return [item.key for item in self.items if item.status == status and item.key is not None]

    @property
    def process_s(self) -> float:
        """Estimated device time in seconds of all recipes that run."""
        return sum(item.cost_s for item in self.items)

    @property
    def range_s(self) -> tuple[float, float]:
        """Range of the device time in seconds, if the estimates of all recipes are off in the same direction."""
        return (
            sum(item.cost_s / item.spread for item in self.items),
            sum(item.cost_s * item.spread for item in self.items),
        )

    @property
    def other_code(self) -> list[str]:
        """A sentence for each plugin with which results that are reused would be other ones now."""
        return list(dict.fromkeys(item.reason for item in self.items if item.status == "reuse" and item.reason))

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Kind to device time and artifact bytes of the recipes that run."""
        runs = {kind: [one for one in self.items if one.status == "run" and one.kind == kind] for kind in KINDS}
        return {
            kind: {"process_s": sum(one.cost_s for one in items), "disk_bytes": sum(one.disk_bytes for one in items)}
            for kind, items in runs.items()
            if items
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Kind to status to number of items."""
        found = Counter((item.kind, item.status) for item in self.items)
        return {kind: {status: found[kind, status] for status in STATUSES} for kind in KINDS}

    def totals(self) -> dict[str, int]:
        """Status to number of items."""
        found = Counter(item.status for item in self.items)
        return {status: found[status] for status in STATUSES}

    def to_json(self) -> dict[str, Any]:
        return {
            "grid": self.grid,
            "cells": self.cells,
            "totals": self.totals(),
            "counts": self.counts(),
            "cost": {
                "flops": self.flops,
                "process_s": round(self.process_s, 1),
                "range_s": [round(seconds, 1) for seconds in self.range_s],
                "wall_s": round(self.wall_s, 1),
                "chain_s": round(self.chain_s, 1),
                "slots": self.slots,
                "disk_bytes": sum(item.disk_bytes for item in self.items),
                "by_kind": self.by_kind(),
                "priced": self.priced,
            },
            **({} if self.cached_logits is None else {"cached_logits": self.cached_logits._asdict()}),
            "stale": [{"kind": kind, "key": key} for kind, key in self.stale],
            "items": [item._asdict() | {"cost_s": round(item.cost_s, 2)} for item in self.items],
        }


def plan_session(
    expansion: Expansion,
    session: Session,
    *,
    device: str | None = None,
    slots: int | None = None,
    cache_logits_bytes: int = 0,
) -> Plan:
    """The plan of an expansion, given the results and artifacts of a session.

    ``device``: device for cost estimates, as in :func:`pipelines.grid.pricing.pricing`; ``slots``: number of devices
    (default: all on this machine); ``cache_logits_bytes``: disk budget of cached teacher logits.  Raises
    :class:`rd3.errors.TrackingError` within seconds if a tracking server that serves the artifacts cannot be used,
    TrackingUnavailable if that may pass.
    """
    from pipelines.grid.pricing import pricing
    from tracking.runs import artifacts

    price = pricing(session.ledger.objects, device)
    uri = session.tracking_uri
    server = cache(partial(_probe, session))

    def exists(entry: Entry) -> bool:
        if artifacts.served(entry):
            server()
        return artifacts.exists(entry, uri)

    return make_plan(
        expansion,
        session.ledger,
        exists=exists,
        verify=partial(artifacts.fetch, cache=session.home / "cache", tracking_uri=uri),
        rates=price.rates,
        slots=slots or price.devices,
        priced=f"{price.source}; precision auto is {price.rates.auto} there",
        cache_logits_bytes=cache_logits_bytes,
    )


def _probe(place: Place) -> None:
    """One quick probe, as MLflow's client would retry for minutes; callers may retry if it raises TrackingUnavailable.

    They have logged in before, so a rejected login means a server that is starting or has lost its database.
    """
    from tracking.runs.reachable import LoginRejected
    from tracking.runs.runs import Tracker

    try:
        Tracker(place).check()
    except LoginRejected as error:
        raise TrackingUnavailable(error.message, error.fix) from None


def make_plan(
    expansion: Expansion,
    ledger: Ledger,
    *,
    exists: Callable[[Entry], bool],
    verify: Callable[[Entry], object],
    rates: Rates = CPU_THREAD,
    slots: int = 1,
    priced: str = "",
    cache_logits_bytes: int = 0,
) -> Plan:
    """The plan of an expansion.

    Recipes of cells (without a grid: recipes without children) are results: missing ones run.  All others (teachers,
    statistics, initial sets) are planned only if a recipe that runs needs them.  ``verify`` (raises DataMissing or
    DataCorrupt) reads the parents of recipes that run; all other results only have to exist.
    """
    results = _results(expansion, ledger, exists)
    wanted = _wanted(expansion, ledger, results, verify)
    blocked = _blocked(expansion, wanted)
    items: list[Item] = []
    costs = _Costs(expansion)
    flops = 0.0
    # Larger sets come before the smaller ones that are copied from them.
    for recipe in topological(expansion.recipes.values(), expansion.larger_sets):
        key = recipe.key
        label = expansion.label(key)
        if key in blocked:
            items.append(Item(key, recipe.kind, label, "blocked", blocked[key]))
        elif key in wanted:
            larger = expansion.larger_sets.get(key)  # its first images are copied, which costs nothing
            amount = costs.work(recipe) if larger not in results.usable and larger not in wanted else Work()
            seconds, spread = rates.seconds(amount), rates.spread_of(amount)
            flops += amount.cost.flops
            reason = "run again to keep the student" if key in results.studentless else ""
            items.append(Item(key, recipe.kind, label, "run", reason, seconds, spread, costs.disk_bytes(recipe)))
        elif key in results.usable:
            items.append(Item(key, recipe.kind, label, "reuse", results.other_code.get(key, "")))
    items += _unsupported(expansion)
    costs_s = {item.key: item.cost_s for item in items if item.status == "run" and item.key is not None}
    queue = RecipeQueue(
        {key: expansion.recipes[key] for key in costs_s},
        demands=dict.fromkeys(KINDS, Demand(1.0)),
        after={key: [larger] for key, larger in expansion.larger_sets.items() if key in costs_s},
        costs_s=costs_s,
    )
    cached_logits = None
    if cache_logits_bytes:
        cached_logits = forecast_logits(
            [expansion.recipes[key] for key in costs_s],
            cache_logits_bytes,
            work=costs.work,
            parents=expansion.recipes,
            infos=expansion.infos,
            rates=rates,
        )
    return Plan(
        grid=expansion.grid.name if expansion.grid else "",
        items=items,
        stale=[(kind, key) for kind, key in results.stale if key in wanted],
        rerun_for_weights=frozenset(results.studentless & wanted),
        cells=len(expansion.cells),
        flops=flops,
        slots=slots,
        chain_s=max(queue.path_s.values(), default=0.0),
        wall_s=simulated_wall_s(queue, queue.costs_s, slots),
        priced=priced,
        cached_logits=cached_logits,
    )


@dataclass
class _Results:
    """What the ledger has of the recipes of an expansion."""

    usable: set[Key] = field(default_factory=set)
    """Results whose files exist."""
    stale: list[tuple[str, Key]] = field(default_factory=list)
    """(kind, key) of entries whose files do not."""
    studentless: set[Key] = field(default_factory=set)
    """Evaluations without the weights of their student."""
    other_code: dict[Key, str] = field(default_factory=dict)
    """Results that other code computed than is installed, with a sentence."""


def _results(expansion: Expansion, ledger: Ledger, exists: Callable[[Entry], bool]) -> _Results:
    results = _Results()
    for kind in KINDS:
        listed = ledger.keys(kind)
        keys = [key for key, recipe in expansion.recipes.items() if recipe.kind == kind and key in listed]
        entries = list(ledger.find_many(kind, keys).values()) if keys else []
        with ThreadPoolExecutor(16) as pool:  # on S3 each check waits for the network
            present = list(pool.map(exists, entries))
        usable = {entry.key for entry, found in zip(entries, present, strict=True) if found}
        results.usable |= usable
        results.stale += [(kind, entry.key) for entry in entries if entry.key not in usable]
        results.other_code |= other_code(entries)
        if kind == "evaluation":
            results.studentless = {one.key for one in entries if one.key in usable and STUDENT not in one.files}
    return results


def _wanted(expansion: Expansion, ledger: Ledger, results: _Results, verify: Callable[[Entry], object]) -> set[Key]:
    """Recipes that have to run; moves what these cannot use of ``results`` from ``usable`` to ``stale``.

    Visits children first (``expansion.recipes`` has parents first), so that parents are included only if needed.
    """
    wanted: set[Key] = set()
    needed: set[Key] = set()
    # A grid with ``robustness`` keeps students, too, but only evaluations that a measurement needs run again.
    keep_all = expansion.grid is not None and expansion.grid.keep_students
    for key, recipe in reversed(expansion.recipes.items()):
        if key in results.studentless and (keep_all or key in needed):
            results.usable.discard(key)
        if key in results.usable and key in needed:
            entry = ledger.find_many(recipe.kind, [key]).get(key)
            try:
                if entry is None:
                    raise DataMissing(f"{recipe.label()} was removed from the ledger meanwhile.")
                verify(entry)
            except (DataMissing, DataCorrupt):
                results.usable.discard(key)
                results.stale.append((recipe.kind, key))
        if key not in results.usable and (key in needed or expansion.is_result(key)):
            wanted.add(key)
            needed |= {parent for _kind, parent in recipe.parents()}
    return wanted


def _blocked(expansion: Expansion, wanted: set[Key]) -> dict[Key, str]:
    """Recipes that cannot run, with the first cause: a missing dataset, or what must be imported."""
    blocked: dict[Key, str] = {}
    for key, recipe in expansion.recipes.items():
        own = expansion.blocked.get(key) or expansion.imports.get(key)
        reasons = [own, *(blocked.get(parent) for _kind, parent in recipe.parents())]
        if key in wanted and any(reasons):
            blocked[key] = next(filter(None, reasons))
    return blocked


def _unsupported(expansion: Expansion) -> list[Item]:
    """One item per reason and pair of set and student, regardless of the number of seeds."""
    items = [
        Item(None, "evaluation", f"{one.method} {one.dataset} ipc{one.ipc} -> {one.student}", "unsupported", one.reason)
        for one in expansion.cells
        if one.reason
    ]
    return list(dict.fromkeys(items))


class _Costs:
    """Work and size of recipes; computed once for recipes of the same work, such as those that differ in a seed."""

    def __init__(self, expansion: Expansion):
        self.recipes, self.keeps_students = expansion.recipes, expansion.keeps_students
        self.infos = expansion.infos
        self.known: dict[Hashable, Work] = {}

    def _info(self, recipe: Recipe) -> DatasetInfo | None:
        """The recipe's dataset; None if that or a parent is unknown, so that nothing can be computed."""
        unknown = any(parent not in self.recipes for _kind, parent in recipe.parents())
        return None if unknown else self.infos.get(recipe.data.name)

    def disk_bytes(self, recipe: Recipe) -> int:
        info = self._info(recipe)
        if info is None:
            return 0
        student = 0
        if self.keeps_students and isinstance(recipe, EvaluationRecipe):
            student = 4 * extent(recipe.student, info.num_classes, recipe.resolution).values  # of float32
        return student + artifact_bytes(recipe, info, self.recipes.__getitem__)

    def work(self, recipe: Recipe) -> Work:
        info, parent = self._info(recipe), self.recipes.__getitem__
        if info is None:
            return Work()
        same = FORECASTS[type(recipe)].same_work(recipe, parent)
        if same not in self.known:
            self.known[same] = work(recipe, info, parent)
        return self.known[same]
