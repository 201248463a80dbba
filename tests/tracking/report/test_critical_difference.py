"""Average ranks and their diagram: against a plain loop, scipy and the library's own groups."""

from __future__ import annotations

import importlib
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rd3.rankings import average_ranks
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.charts import CHARTS, Drawing
from tracking.report.charts import critical_difference as module
from tracking.report.results import Results

METHODS = ("rded", "random", "sre2l", "edc")


def accuracies(blocks: int, methods: int = 4, step: float = 6.0) -> np.ndarray:
    """(blocks, methods, seeds); later methods are ``step`` points better."""
    noise = np.random.default_rng(3).normal(size=(blocks, methods, 3))
    return 40 + step * np.arange(methods)[:, None] + 3 * noise


def drawing(values: np.ndarray, monkeypatch=None) -> Drawing | None:
    grid = Grid()
    for block, of_block in enumerate(values):
        for method, tops in zip(METHODS, of_block, strict=False):
            grid.add(method, 10, tops.tolist(), **({"varied": {"zeta": float(block)}} if block else {}))
    return CHARTS.get("critical-difference")(Results.of(grid.cells, grid.find), lambda kind, key: Path())


def plain_ranks(blocks: list[dict[str, float]]) -> dict[str, float]:
    """Average ranks by counting the methods above, and half of those that are equal."""
    found = dict.fromkeys(blocks[0], 0.0)
    for block in blocks:
        for name, score in block.items():
            above = sum(other > score for other in block.values())
            equal = sum(other == score for other in block.values()) - 1
            found[name] += (1 + above + equal / 2) / len(blocks)
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_average_ranks_equal_a_plain_loop_and_scipys_friedman_test(ties):
    scores = accuracies(7)[:, :, 0]
    scores = scores.round(-1) if ties else scores
    blocks = [dict(zip(METHODS, block.tolist(), strict=True)) for block in scores]
    found = average_ranks(blocks)
    assert found.ranks == pytest.approx(plain_ranks(blocks))
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    if not ties:  # Friedman's statistic in closed form
        squares = sum((rank - 2.5) ** 2 for rank in found.ranks.values())
        assert found.p_value == pytest.approx(stats.chi2.sf(12 * 7 / (4 * 5) * squares, 3))


def test_blocks_of_ties_have_no_differences():
    assert average_ranks([{"a": 1.0, "b": 1.0, "c": 1.0}] * 3).p_value == 1.0


def test_the_critical_distance_is_demsars():
    # q at 5 % in Demšar (2006), Table 5a: 2.343 for three methods, 3.164 for ten
    assert module.critical_distance(3, 6) == pytest.approx(2.343 * math.sqrt(3 * 4 / 36), abs=1e-3)
    assert module.critical_distance(10, 20) == pytest.approx(3.164 * math.sqrt(10 * 11 / 120), abs=1e-3)


def test_methods_that_do_not_differ_are_separated_in_few_cases():
    stream, distance = np.random.default_rng(5), module.critical_distance(4, 6)
    wrong = 0
    for scores in stream.normal(size=(1000, 6, 4)):
        found = average_ranks([dict(enumerate(block)) for block in scores.tolist()])
        ranks = found.ranks.values()
        wrong += found.p_value < module.ALPHA and max(ranks) - min(ranks) >= distance
    assert wrong / 1000 <= 0.06


def test_the_diagram_states_ranks_and_the_groups_that_the_library_joins():
    values = accuracies(8)
    found = drawing(values)
    blocks = [dict(zip(METHODS, block.mean(axis=1).tolist(), strict=True)) for block in values]
    for name, rank in plain_ranks(blocks).items():
        assert f"{name} {rank:.2f}" in found.text
        assert f"{name} {rank:.2f}".encode() in found.svg or f"{rank:.2f} {name}".encode() in found.svg
    assert "over 8 blocks" in found.text and "Friedman's test finds differences" in found.text
    assert found.caption.startswith(found.text)
    ElementTree.fromstring(found.svg)
    library = importlib.import_module("scikit_posthocs")
    p_values = library.posthoc_nemenyi_friedman(np.array([list(block.values()) for block in blocks]))
    distance = module.critical_distance(4, 8)
    groups = module.joined(average_ranks(blocks).ranks, distance)
    for a, first in enumerate(METHODS):
        for b, second in enumerate(METHODS[:a]):
            together = any({first, second} <= set(group) for group in groups)
            assert together == (p_values.iloc[a, b] >= module.ALPHA)


def test_groups_are_the_largest_ones():
    ranks = {"d": 4.0, "a": 1.0, "c": 2.4, "b": 1.5}
    assert module.joined(ranks, 1.0) == [["a", "b"], ["b", "c"]]
    assert module.joined(ranks, 9.0) == [["a", "b", "c", "d"]]
    assert module.joined(ranks, 0.1) == []


def test_without_differences_all_methods_are_joined():
    found = drawing(accuracies(5, step=0.0))
    assert "finds no difference" in found.text and found.svg.startswith(b"<svg")


def test_two_methods_have_average_ranks_without_a_diagram():
    found = drawing(accuracies(6, methods=2))
    assert "Average ranks over 6 blocks" in found.text and "needs at least 3 methods" in found.caption
    assert found.svg == b""


def test_too_few_blocks_are_said():
    found = drawing(accuracies(1))
    assert found.svg == b"" and found.text.startswith("No average ranks: 1 block has a result of all 4 methods")
    assert drawing(accuracies(6, methods=1)) is None


def test_the_same_evaluations_are_one_block():
    grid = Grid()
    for block in range(6):
        for method in METHODS[:3]:
            grid.add(method, 10, [40.0, 41.0], **({"varied": {"zeta": float(block)}} if block else {}))
    results = Results.of(grid.cells, grid.find)
    scores = [score for score in results.scores if not score.varied]
    again = [score.__class__(**{**vars(score), "varied": {"zeta": 1.5}}) for score in scores]
    assert len(module.complete_blocks([*scores, *again])[1]) == 1
    assert len(module.complete_blocks(results.scores)[1]) == 6


def test_without_the_library_the_ranks_are_stated_and_how_to_install_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    found = drawing(accuracies(8))
    assert "Average ranks over 8 blocks" in found.text and "pip install 'rd3[statistics]'" in found.text
    assert found.svg == b""
