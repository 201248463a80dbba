"""Verdicts on the claim of a grid, from made-up results."""

from __future__ import annotations

import csv
import io

import pytest
from scipy import stats

from rd3.claims import FAILS, HOLDS, OPEN, Claim
from rd3.errors import DataMissing
from rd3.stats import holm
from tests.tracking.report.test_page import Reader
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.claims import judged
from tracking.report.page import write_report
from tracking.report.results import Results

RDED, RANDOM, SRE2L = [60.0, 61.0, 62.4, 61.1], [50.2, 51.0, 52.0, 51.3], [64.0, 49.0, 47.0, 66.0]
BETTER = Claim(text="RDED beats others.", test="better", better=("rded",), than=("random", "sre2l"))


def results(*settings: dict[str, list[float]]) -> Results:
    """One setting after another: the base point, then other values of zeta."""
    grid = Grid()
    for place, methods in enumerate(settings):
        for method, tops in methods.items():
            grid.add(method, 10, tops, **({"varied": {"zeta": float(place)}} if place else {}))
    return Results.of(grid.cells, grid.find)


def rows(claim: Claim, found: Results) -> list[dict[str, str]]:
    table = judged(claim, found).table
    return [dict(zip(table.columns, texts, strict=True)) for texts in table.texts]


def test_better_compares_each_pair_of_both_lists():
    found = rows(BETTER, results({"random": RANDOM, "sre2l": SRE2L, "rded": RDED}))
    assert [row["compared"] for row in found] == ["rded − random", "rded − sre2l"]
    adjusted = holm([stats.ttest_rel(RDED, other).pvalue for other in (RANDOM, SRE2L)])
    assert [row["p (Holm)"] for row in found] == [f"{p:.2g}".replace("e-0", "e−0") for p in adjusted]
    assert [row["verdict"] for row in found] == [HOLDS, OPEN]
    low, high = stats.ttest_rel(RDED, RANDOM).confidence_interval(0.95)
    assert found[0]["points with 95 % interval"] == f"+10.0 [{low:.1f}, {high:.1f}]"
    assert (found[0]["seeds"], found[0]["dataset"], found[0]["IPC"]) == ("4 student seeds", "cifar10", "10")


@pytest.mark.parametrize(
    ("methods", "verdict"),
    [
        ({"random": RANDOM, "rded": RDED}, f"{HOLDS} (1 {HOLDS})"),
        ({"random": RDED, "rded": RANDOM}, f"{FAILS} (1 {FAILS})"),
        ({"random": SRE2L, "rded": RANDOM}, f"{OPEN} (1 {OPEN})"),
        ({"rded": RANDOM}, f"{OPEN} (nothing to compare)"),
    ],
)
def test_the_verdict_on_the_whole_claim(methods, verdict):
    assert judged(BETTER, results(methods)).verdict == verdict


def test_the_same_ranking_compares_each_setting_with_the_first():
    claim = Claim(text="The ranking survives.", test="same ranking")
    base, turned = {"random": RANDOM, "rded": RDED}, {"random": RDED, "rded": RANDOM}
    found = rows(claim, results(base, {name: [top + 3 for top in tops] for name, tops in base.items()}, turned))
    assert [(row["setting"], row["verdict"]) for row in found] == [("zeta=1.0", HOLDS), ("zeta=2.0", FAILS)]
    assert found[0]["points with 95 % interval"].startswith("−10.0 [")
    assert "; +10.0 [" in found[1]["points with 95 % interval"]


def test_a_setting_without_changes_is_called_the_first_one_only_if_it_is():
    grid = Grid()
    for student, varied in (("resnet18", {}), ("conv3", {}), ("conv3", {"zeta": 2.0})):
        for method, tops in {"random": RANDOM, "rded": RDED}.items():
            grid.add(method, 10, tops, student=student, varied=varied)
    found = Results.of(grid.cells, grid.find)
    same = Claim(text="The ranking survives.", test="same ranking")
    assert [row["setting"] for row in rows(same, found)] == ["no changes", "zeta=2.0"]
    better = Claim(text="RDED is better.", test="better", better=("rded",), than=("random",))
    assert [row["setting"] for row in rows(better, found)] == ["resnet18", "conv3", "conv3, zeta=2.0"]


def test_seeds_of_both_settings_are_said_where_one_has_fewer():
    claim = Claim(text="The ranking survives.", test="same ranking")
    base = {"random": RANDOM, "rded": RDED}
    (row,) = rows(claim, results(base, {name: tops[:3] for name, tops in base.items()}))
    assert row["seeds"] == "4 and 3 student seeds"


def test_the_evaluation_against_the_methods():
    claim = Claim(text="The evaluation decides.", test="evaluation")
    base = {"random": RANDOM, "rded": RDED}
    small = {"rded": [62.0, 62.9, 64.5, 63.2]}
    large = {"rded": [30.0, 30.9, 32.5, 31.2]}
    found = rows(claim, results(base, small, large))
    assert [(row["setting"], row["verdict"]) for row in found] == [("zeta=1.0", FAILS), ("zeta=2.0", HOLDS)]
    change, apart = found[1]["points with 95 % interval"].split("; ")
    assert change.startswith("−30.0 [") and apart.startswith("+10.0 [")


def test_the_first_setting_and_method_are_those_of_the_grid_finished_or_not():
    claim = Claim(text="The evaluation decides.", test="evaluation")
    nothing = [None] * 4
    large = {"rded": [30.0, 30.9, 32.5, 31.2]}
    for base in ({"random": nothing, "rded": RDED}, {"random": RANDOM, "rded": nothing}):
        found = judged(claim, results(base, large))
        assert found.verdict == f"{OPEN} (1 {OPEN}, 1 not finished)"
        assert "against rded − random under the first" in found.table.texts[0][-4]


def test_a_claim_about_a_grid_that_is_not_finished_does_not_hold_yet():
    partly = results({"random": RANDOM, "rded": RDED, "sre2l": [None] * 4})
    assert judged(BETTER, partly).verdict == f"{OPEN} (1 {HOLDS}, 1 {OPEN}, 1 not finished)"
    other_way = results({"random": RDED, "rded": RANDOM, "sre2l": [None] * 4})
    assert judged(BETTER, other_way).verdict.startswith(FAILS), "one case decides"


def test_a_small_difference_that_is_significant_is_one():
    tops = [60.5, 61.51, 62.49, 61.5, 60.0]
    found = rows(BETTER, results({"random": [60.0, 61.0, 62.0, 61.0, 59.5], "rded": tops}))
    assert [row["verdict"] for row in found] == [HOLDS]
    assert float(found[0]["p (within ±1 point)"].replace("−", "-")) < 0.05


def test_the_claim_heads_the_page_with_its_verdict(tmp_path):
    def fetch(kind, key):
        raise DataMissing("No files here.")

    written = write_report("grid", results({"random": RANDOM, "rded": RDED}), fetch, tmp_path, facts={"claim": BETTER})
    page = written["report.html"].read_text()
    reader = Reader(page)
    assert not reader.problems and page.index('<section id="claim">') < page.index('<section id="results">')
    assert f"Verdict: {HOLDS}" in reader.text and BETTER.text in reader.text
    markdown = written["report.md"].read_text()
    assert f"> {BETTER.text}" in markdown and f"**Verdict: {HOLDS}" in markdown
    lines = list(csv.DictReader(io.StringIO(written["tables/claim.csv"].read_text())))
    assert [line["verdict"] for line in lines] == [HOLDS]
