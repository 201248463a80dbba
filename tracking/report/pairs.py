"""Paired comparison of a method's variants with the method as published, on the same seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rd3.comparisons import single_difference
from rd3.component import changes_text
from rd3.stats import PairedDifference, mean
from tracking.report.columns import several_sets, unit_means, unit_of
from tracking.report.query import split_overrides
from tracking.report.scores import Seeds

_EVALUATION = ("teacher", "student", "protocol", "labels")
_EQUAL = ("method", "dataset", "ipc", *_EVALUATION, "varied")
Rows = dict[Seeds, dict[str, Any]]


@dataclass(frozen=True)
class Pair:
    """A variant of a method compared with the method as published, all else equal; accuracies in per cent."""

    method: str
    dataset: str
    ipc: int
    changed: Mapping[str, Any]
    """Settings of the variant that differ from the published ones."""
    evaluation: Mapping[str, Any]
    """What its evaluations share, by name: teacher, student, protocol, labels, and changed fields of the protocol."""
    plain: float
    """Mean of the method as published, over the common seeds."""
    variant: float
    seeds: int
    """Number of evaluations on each side."""
    unit: str
    """Unit of the test: ``set seeds``, with means over their students, if these vary, else ``student seeds``."""
    difference: PairedDifference | None
    """Variant minus plain, with a 95 % interval and the p-value of a paired t-test; None without a standard deviation:
    for a single unit, or the same difference for all."""
    precisions: tuple[str, ...] = ()
    """Precisions at which both sides ran; more than one if their machines differ."""


def pairs(frame: pd.DataFrame) -> list[Pair]:
    """Every variant in ``query.rows`` for which the published method was also run, in the order of the rows."""
    groups: dict[str, dict[str, Rows]] = {}  # by what a pair shares, then by the settings of the variant
    for row in frame[frame["status"] == "done"].to_dict("records"):
        # own: settings of the method, named METHOD.SETTING; rest: changed fields of the protocol
        own, rest = split_overrides(row["method"], row["overrides"])
        row["evaluation"] = {name: row[name] for name in _EVALUATION} | row["varied"] | rest
        shared = json.dumps([*(row[name] for name in _EQUAL), rest], sort_keys=True, default=str)
        variants = groups.setdefault(shared, {})
        variants.setdefault(json.dumps(own, sort_keys=True), {})[row["set_seed"], row["student_seed"]] = row
    found = []
    for variants in groups.values():
        plain = variants.pop("{}", {})
        for changed, variant in variants.items():
            both = [seeds for seeds in plain if seeds in variant]
            if both:
                sides = ({seeds: rows[seeds] for seeds in both} for rows in (plain, variant))
                found.append(_pair(json.loads(changed), *sides))
    return found


def _pair(own: dict[str, Any], plain: Rows, variant: Rows) -> Pair:
    first, *_others = rows = [*plain.values(), *variant.values()]
    by_set = several_sets(plain)
    before, after = ({seeds: row["top1_pct"] for seeds, row in side.items()} for side in (plain, variant))
    return Pair(
        **{name: first[name] for name in ("method", "dataset", "ipc", "evaluation")},
        changed={name.removeprefix(f"{first['method']}."): value for name, value in own.items()},
        plain=mean(list(before.values())),
        variant=mean(list(after.values())),
        seeds=len(plain),
        unit=unit_of(plain),
        difference=single_difference(*(list(unit_means(side, by_set).values()) for side in (after, before))),
        precisions=tuple(sorted({row["ran_precision"] for row in rows if row["ran_precision"]})),
    )


def evaluation_texts(found: Sequence[Pair]) -> list[str]:
    """What tells each pair's evaluations from those of the others, such as ``student=convnet, epochs=20``."""
    names = dict.fromkeys(name for pair in found for name in pair.evaluation)
    apart = [
        name for name in names if any(pair.evaluation.get(name) != found[0].evaluation.get(name) for pair in found)
    ]
    stated = ({name: pair.evaluation[name] for name in apart if name in pair.evaluation} for pair in found)
    return [changes_text(some) for some in stated]


def interval_text(pair: Pair) -> str:
    """Difference, interval and p-value, such as ``+1.2 [−0.3, 2.7], p 0.09 (3 set seeds)``."""
    across = f"; across {' and '.join(pair.precisions)}" if len(pair.precisions) > 1 else ""
    if pair.difference is None:
        count = "1 pair" if pair.seeds == 1 else f"the same for all {pair.unit}"
        return f"{pair.variant - pair.plain:+.1f} ({count}, no interval{across})".replace("-", "−")
    got = pair.difference
    text = f"{got.mean:+.1f} [{got.low:.1f}, {got.high:.1f}], p {got.p_value:.2g} ({got.n} {pair.unit}{across})"
    return text.replace("-", "−")
