"""Aggregation of evaluations that differ only in their seeds: mean, standard deviation and the paper's value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rd3.comparisons import MIN_SEEDS
from rd3.component import changes_text
from rd3.errors import BadValue
from rd3.protocol import EvalProtocol
from rd3.stats import VarianceComponents, confidence_interval, mean, std, variance_components
from rd3.values import neutral_values
from tracking.report.paper import PaperValue, configured_value, incomparable, names, paper_value
from tracking.report.query import GENERATION

POINT = (
    "method",
    "dataset",
    "ipc",
    "teacher",
    "student",
    "protocol",
    "labels",
    "varied",
    "overrides",
    "setting",
    "printed",
)
"""Fields that repeats share: all fields of a cell but its seeds."""


VALIDATED = "tested on validation images"
"""What sets the scores of a grid with ``test_on: validation`` apart."""
Seeds = tuple[int | None, int]
"""(set seed, student seed) of an evaluation."""


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of repeats in per cent; standard deviations have ddof 1 (None for a single value)."""

    n: int
    mean: float
    std: float | None
    """Over all repeats."""
    std_sets: float | None
    """Of the means per set seed; None unless several set seeds and several student seeds were used."""
    std_students: float | None
    """Pooled within set seeds; None like ``std_sets``."""
    half_95: float | None
    """Half of the 95 % t interval of the mean: over means per set seed where these vary, else over student seeds."""
    units: int = 1
    """Independent values behind the interval: set seeds where these vary, else student seeds."""
    low: float | None = None
    high: float | None = None
    components: VarianceComponents | None = None
    """Variance of set seeds (between) and of student seeds (within)."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, within 0 to 100 %; None for fewer than three units, from which it would claim too much."""
        if self.low is None or self.high is None or self.units < MIN_SEEDS:
            return None
        return max(self.low, 0.0), min(self.high, 100.0)


def summarise(values: Sequence[float], set_seeds: Sequence[int | None]) -> Summary:
    """Summarise repeats; ``set_seeds[i]`` is the set seed of ``values[i]``."""
    by_set: dict[int | None, list[float]] = {}
    for value, seed in zip(values, set_seeds, strict=True):
        by_set.setdefault(seed, []).append(float(value))
    groups = list(by_set.values())
    means = [mean(group) for group in groups]
    everything = [value for group in groups for value in group]
    components = variance_components(groups)
    within = components.within if len(groups) > 1 else None
    independent = means if len(groups) > 1 else everything
    low, high = confidence_interval(independent) if len(independent) > 1 else (None, None)
    return Summary(
        n=len(everything),
        mean=mean(everything),
        std=std(everything),
        std_sets=None if within is None else std(means),
        std_students=None if within is None else math.sqrt(within),
        half_95=None if low is None or high is None else (high - low) / 2,
        units=len(independent),
        low=low,
        high=high,
        components=components,
    )


@dataclass(frozen=True)
class Score:
    """One result of a table: a point of the grid, over all its seeds."""

    method: str
    dataset: str
    ipc: int
    teacher: str
    student: str
    protocol: str
    labels: str
    varied: Mapping[str, Any]
    overrides: Mapping[str, Any]
    planned: int
    """Number of repeats in the grid."""
    top1: Summary | None
    """Top-1 accuracy of the finished repeats; None if there are none."""
    generation_wall_s: float | None
    """Mean over the sets."""
    generation_process_s: float | None
    """CPU time; see ``generation_s`` for sets that a GPU made."""
    reduced: Mapping[str, tuple[float, float]]
    """Map of fields to (value of the run, published value)."""
    paper: PaperValue | None
    not_comparable: tuple[str, ...]
    """Differences from the paper's experiment that rule out a comparison with its value."""
    unsupported: str
    """Reason why the cell cannot be run, or empty."""
    resolved: Mapping[str, Any] | None
    """Resolved fields of the protocol; None until a repeat has finished."""
    image_steps: int | None = None
    """Images that the student sees in training; None for results that do not state it."""
    label_bytes: int | None = None
    """Bytes of stored soft labels; None if the teachers label in training, or for results that do not state it."""
    preparation_wall_s: float | None = None
    """The part of the generation time that its parents took; None for results that do not state it."""
    preparation_process_s: float | None = None
    set_size: int | None = None
    """Images of a set."""
    precisions: tuple[str, ...] = ()
    """Precisions (``bf16``, ``fp32``) at which the repeats ran; more than one if their machines differ."""
    sets: tuple[str, ...] = ()
    """Keys of the sets, in order of the set seed."""
    evaluations: tuple[str, ...] = ()
    """Keys of the finished evaluations."""
    by_seeds: Mapping[Seeds, float] = field(default_factory=dict)
    """Top-1 accuracy in per cent of the finished evaluations, in ascending order of their seeds."""
    keys: tuple[str, ...] = ()
    """Keys of the planned evaluations."""
    generation_gpus: tuple[str, ...] = ("",)
    """Names of the GPUs that made the sets; empty for a processor."""
    setting: str = ""
    """Name of the part of the grid; empty if it has none."""
    printed: Mapping[str, str] = field(default_factory=dict)
    """Table and beginning of the configuration in which the paper prints it; empty: under its own protocol."""

    @property
    def status(self) -> str:
        """``done``, ``partial``, ``missing`` or ``unsupported``."""
        if self.unsupported:
            return "unsupported"
        if self.top1 is None:
            return "missing"
        return "done" if self.top1.n == self.planned else "partial"

    @property
    def generation_s(self) -> float | None:
        """Wall time on the GPU for sets that one made, else CPU time; None if not all sets are of one device."""
        if len(self.generation_gpus) > 1:
            return None
        return self.generation_wall_s if self.generation_gpus[0] else self.generation_process_s

    @property
    def preparation_s(self) -> float | None:
        """The part of ``generation_s`` that the parents of the sets took; None if it is not known."""
        if self.generation_s is None:
            return None
        return self.preparation_wall_s if self.generation_gpus[0] else self.preparation_process_s

    @property
    def generation_unit(self) -> str:
        """``CPU seconds``, or ``seconds on NVIDIA H200``; empty without ``generation_s``."""
        if self.generation_s is None:
            return ""
        return f"seconds on {self.generation_gpus[0]}" if self.generation_gpus[0] else "CPU seconds"

    @property
    def delta(self) -> float | None:
        """Difference from the paper's mean in points; None if either is missing or the experiments differ."""
        if self.top1 is None or self.paper is None or self.reduced or self.not_comparable:
            return None
        return self.top1.mean - self.paper.mean


def _plain(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def comparable_protocol(resolved: Mapping[str, Any]) -> str:
    """A resolved protocol as text, without the fields that the paper does not fix, such as the precision.

    Fields at their neutral value are left out, as older results lack those that were added since.
    """
    not_fixed, added = names()["open"], neutral_values(EvalProtocol)
    kept = {name: value for name, value in resolved.items() if name not in not_fixed}
    return _plain({name: value for name, value in kept.items() if name not in added or added[name] != value})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _score(repeats: list[dict[str, Any]], network: str | None) -> Score:
    first = repeats[0]
    done = [row for row in repeats if row["status"] == "done"]
    protocols = {comparable_protocol(row["resolved"]) for row in done if row["resolved"]}
    if len(protocols) > 1:
        raise BadValue(
            f"Repeats of {first['method']} on {first['dataset']} at IPC {first['ipc']} ran under "
            f"{len(protocols)} protocols.",
            "report each grid by itself",
        )
    reduced = {name: tuple(pair) for row in repeats for name, pair in row["reduced"].items()}
    apart = incomparable(*(first[name] for name in ("method", "protocol", "overrides", "labels", "printed")))
    apart += [changes_text({name: value}) for name, value in first["varied"].items()]
    apart += [VALIDATED] if any(row["tested_on"] == "validation" for row in done) else []
    cell = (first["method"], first["dataset"], first["ipc"], first["student"], network)
    printed = configured_value(*cell, first["printed"]) if first["printed"] else paper_value(*cell, first["labels"])
    per_set = {row["set"]: row for row in repeats if row["set"]}
    same: dict[str, Any] = {name: first[name] for name in POINT}
    same |= {name: _mean(row[name] for row in per_set.values()) for name in GENERATION}
    same |= {name: done[0][name] if done else None for name in ("resolved", "image_steps", "label_bytes")}
    return Score(
        **same,
        planned=len(repeats),
        top1=summarise([row["top1_pct"] for row in done], [row["set_seed"] for row in done]) if done else None,
        set_size=next((row["set_count"] for row in per_set.values() if row["set_count"] is not None), None),
        generation_gpus=tuple(sorted({gpu for row in per_set.values() if (gpu := row["generation_gpu"]) is not None}))
        or ("",),  # None: a set that is not there yet
        reduced=reduced,
        paper=printed,
        not_comparable=tuple(apart),
        unsupported=next((row["reason"] or "not supported" for row in repeats if row["status"] == "unsupported"), ""),
        precisions=tuple(sorted({row["ran_precision"] for row in done if row["ran_precision"]})),
        sets=tuple(per_set),
        evaluations=tuple(row["evaluation"] for row in done),
        by_seeds={(row["set_seed"], row["student_seed"]): row["top1_pct"] for row in done},
        keys=tuple(row["evaluation"] for row in repeats if row["evaluation"]),
    )


def point_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that repeats share, as text; ``fields``: of a row, or ``vars`` of a score."""
    return tuple(_text(fields[name]) for name in POINT)


def differing(found: Sequence[Score]) -> list[str]:
    """The fields of :data:`POINT` in which scores differ."""
    return [name for name in POINT if len({_text(getattr(score, name)) for score in found}) > 1]


def scores(frame: pd.DataFrame) -> list[Score]:
    """The scores of a frame from ``query.rows``, one per point, in the grid's order.

    Datasets, protocols, teachers, students, labels, methods and their settings stand in the order in which the grid
    names them first, a method as published before its variants, and IPC and varied values ascend.
    """
    points: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    networks: dict[tuple[str, str], str] = {}
    for row in frame.to_dict("records"):
        points.setdefault(point_of(row), []).append(row)
        if row["teacher_network"]:
            networks[row["dataset"], row["teacher"]] = row["teacher_network"]
    found = []
    for repeats in points.values():
        repeats.sort(key=lambda row: (row["set_seed"] or 0, row["student_seed"]))
        known = (row["teacher_network"] for row in repeats if row["teacher_network"])
        unfinished = all(row["status"] != "done" for row in repeats)
        likely = networks.get((repeats[0]["dataset"], repeats[0]["teacher"])) if unfinished else None
        found.append(_score(repeats, next(known, likely)))
    return _in_grid_order(found)


def _in_grid_order(found: Sequence[Score]) -> list[Score]:
    places: dict[tuple[str, str], int] = {}
    for score in found:
        for name in ORDERED:
            places.setdefault((name, _text(getattr(score, name))), len(places))

    def order(score: Score) -> tuple[Any, ...]:
        varied = [
            (name, isinstance(value, str), value if isinstance(value, int | float) else 0, str(value))
            for name, value in score.varied.items()
        ]
        *fields, overrides = (places[name, _text(getattr(score, name))] for name in ORDERED)
        return (*fields, bool(score.overrides), overrides, score.ipc, varied)

    return sorted(found, key=order)


ORDERED = ("dataset", "protocol", "teacher", "student", "setting", "labels", "method", "overrides")


def _text(value: Any) -> str:
    return _plain(value) if isinstance(value, Mapping) else str(value)
