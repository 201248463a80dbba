"""A grid's claim, and the verdict of its results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rd3.claims import FAILS, HOLDS, OPEN, Claim, Evidence, Test, contrast, judge, overall
from tracking.report.blocks import Block, by_block
from tracking.report.columns import EQUIVALENCE_MARGIN, several_sets, unit_means, unit_of
from tracking.report.extra._base import Table
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import differences

Blocks = Mapping[Block, Mapping[str, Score]]
"""Scores by block and by the method with its own settings, such as ``rded (factor=1)``."""
Values = Sequence[float]
"""Accuracies in per cent, or their differences in points, one for each shared seed."""
COLUMNS = (
    *("dataset", "IPC", "setting", "compared", "points with 95 % interval", "seeds", "p (Holm)"),
    *(f"p (within ±{EQUIVALENCE_MARGIN:g} point)", "verdict"),
)
_SEEDS = "over shared seeds; p-values are of two-sided paired t-tests, after Holm's correction for all rows"
_CLAIM = (
    "The claim holds if every row does and all its evaluations are finished, does not hold if any row does not, and "
    "otherwise cannot be decided here. Students of one set say nothing about other sets of a method."
)
RULES: Mapping[Test, str] = {
    "better": (
        f"Differences are {_SEEDS}. A row holds if the first method is significantly better (p below 0.05), does not "
        "hold if the second one is, or if neither is and both are shown to be equivalent within ±"
        f"{EQUIVALENCE_MARGIN:g} point (two one-sided t-tests, after a Holm correction of their own), and otherwise "
        f"cannot be decided. {_CLAIM}"
    ),
    "same ranking": (
        f"Differences of two methods under the first setting and under another one are {_SEEDS}; p is the larger one "
        "of the two. A row holds if both differences are significant with the same sign, does not hold if they are "
        f"with opposite signs, and otherwise cannot be decided. {_CLAIM}"
    ),
    "evaluation": (
        "The change of a method's accuracy by another setting, and its difference from the first method, are "
        f"{_SEEDS}; p is the larger one of the tests of their sum and of their difference, which have the same sign if "
        "the change is the larger one. A row holds if the change is significantly larger, does not hold if it is "
        f"significantly smaller, and otherwise cannot be decided. {_CLAIM}"
    ),
}


@dataclass(frozen=True)
class Judged:
    """What heads the page of a grid with a claim."""

    text: str
    verdict: str
    """The verdict with the counts of its rows."""
    table: Table


@dataclass(frozen=True)
class Case:
    """One row: what is compared where, the numbers that are shown, and the contrasts that are tested."""

    block: Block
    compared: str
    shown: tuple[Values, ...]
    """Differences with intervals in the row."""
    tested: tuple[Values, ...]
    """Differences, or sums and differences of these, that are tested against zero."""
    scores: tuple[Score, ...]
    """Those that are compared."""


def judged(claim: Claim, results: Results) -> Judged:
    """The verdict on a claim, with a row for each of its cases."""
    # With planned ones, so that the first setting and the first method do not depend on what is finished.
    blocks = by_block(results.scores, planned=True)
    cases = list(_CASES[claim.test](claim, blocks))
    bound = EQUIVALENCE_MARGIN if claim.test == "better" else None
    found = judge([case.tested for case in cases], bound)
    verdicts = [one.verdict for one in found]
    counts = [f"{verdicts.count(name)} {name}" for name in (HOLDS, FAILS, OPEN) if name in verdicts]
    unfinished = sum(any(score.status != "done" for score in case.scores) for case in cases)
    counts += [f"{unfinished} not finished"] if unfinished else []
    names = _setting_names([case.block for case in cases], {first for first, _other in _changes(blocks)})
    rows = [_row(case, one, names[case.block]) for case, one in zip(cases, found, strict=True)]
    whole = overall(verdicts, complete=not unfinished)
    verdict = f"{whole} ({', '.join(counts)})" if rows else f"{OPEN} (nothing to compare)"
    table = Table("Claim", COLUMNS, rows, RULES[claim.test])
    return Judged(claim.text, verdict, table.without_empty() if rows else table)


def _better(claim: Claim, blocks: Blocks) -> Iterator[Case]:
    for block, methods in blocks.items():
        for one, other in itertools.product(methods, methods):
            if methods[one].method in claim.better and methods[other].method in claim.than:
                values = _difference(*_by_seed(methods[one], methods[other]))
                yield Case(block, f"{one} − {other}", (values,), (values,), (methods[one], methods[other]))


def _same_ranking(claim: Claim, blocks: Blocks) -> Iterator[Case]:
    for first, block in _changes(blocks):
        common = [name for name in blocks[first] if name in blocks[block]]
        for one, other in itertools.combinations(common, 2):
            compared = tuple(blocks[at][name] for at in (first, block) for name in (one, other))
            by_set = several_sets(*(score.by_seeds for score in compared))
            before, after = (_difference(*_by_seed(*pair, by_set=by_set)) for pair in (compared[:2], compared[2:]))
            values = (before, after)
            yield Case(block, f"{one} − {other}: first setting, here", values, values, compared)


def _evaluation(claim: Claim, blocks: Blocks) -> Iterator[Case]:
    for first, block in _changes(blocks):
        base = next(iter(blocks[first]))
        for name in blocks[first]:
            if name != base and name in blocks[block]:
                scores = (blocks[block][name], blocks[first][name], blocks[first][base])
                # The method's change by the setting, and its difference from the first method under the first setting.
                after, before, of_base = _by_seed(*scores)
                change, apart = _difference(after, before), _difference(before, of_base)
                tested = tuple([a + sign * b for a, b in zip(change, apart, strict=True)] for sign in (1, -1))
                compared = f"{name}: change by the setting, against {name} − {base} under the first"
                yield Case(block, compared, (change, apart), tested, scores)


_CASES: Mapping[Test, Callable[[Claim, Blocks], Iterator[Case]]] = {
    "better": _better,
    "same ranking": _same_ranking,
    "evaluation": _evaluation,
}


def _changes(blocks: Blocks) -> Iterator[tuple[Block, Block]]:
    """Pairs of the first block of each dataset and IPC, and another one that differs in its setting."""
    first: dict[tuple[str, int], Block] = {}
    for block in blocks:
        base = first.setdefault((block.dataset, block.ipc), block)
        if base != block:
            yield base, block


def _difference(first: Values, second: Values) -> list[float]:
    """First minus second for each seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def _by_seed(*scores: Score, by_set: bool | None = None) -> list[list[float]]:
    """Accuracies of each score on the seeds that all share, in one order of the seeds.

    ``by_set``: whether these are set seeds; None: if any of the scores has several.
    """
    by_set = several_sets(*(score.by_seeds for score in scores)) if by_set is None else by_set
    values = [unit_means(score.by_seeds, by_set) for score in scores]
    shared = [seed for seed in values[0] if all(seed in one for one in values)]
    return [[one[seed] for seed in shared] for one in values]


def _setting_names(blocks: Sequence[Block], firsts: Collection[Block]) -> dict[Block, str]:
    """Names of the blocks' settings, by the fields in which these differ; ``firsts`` have the grid's first setting."""
    settings = [block.setting._replace(labels=f"{block.setting.labels} labels") for block in blocks]
    found = dict(zip(blocks, differences(settings), strict=True))
    without_changes = {block: "first setting" if block in firsts else "no changes" for block in found}
    return {block: name or (without_changes[block] if any(found.values()) else "") for block, name in found.items()}


def _row(case: Case, found: Evidence, setting: str) -> list[str]:
    block = case.block
    unit = unit_of(*(score.by_seeds for score in case.scores))
    counts = list(dict.fromkeys(map(len, case.shown)))  # the settings of an unfinished grid may have unequal ones
    points = "; ".join(map(_points, case.shown))
    p_values = ["" if p is None else f"{p:.2g}".replace("-", "−") for p in (found.adjusted, found.equivalent)]
    seeds = f"{' and '.join(map(str, counts))} {unit if counts != [1] else unit.removesuffix('s')}"
    return [block.dataset, str(block.ipc), setting, case.compared, points, seeds, *p_values, found.verdict]


def _points(values: Values) -> str:
    got = contrast(values)
    if got is None:
        return "too few seeds"
    return f"{got.mean:+.1f} [{got.low:.1f}, {got.high:.1f}]".replace("-", "−")
