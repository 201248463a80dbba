"""The leaderboard: every finished number as verified, the paper's as reported, each once, best first."""

from __future__ import annotations

import html
from pathlib import Path

from tests.tracking.report.test_tables import Results as Cells
from tracking.report.leaderboard import Published, boards, standings, write_leaderboard
from tracking.report.results import Results


def results(*more: tuple[str, int, list[float | None]], **fields: object) -> Results:
    cells = Cells()
    for method, ipc, tops in more:
        cells.add(method, ipc, tops, **fields)
    return Results.of(cells.cells, cells.find)


def test_verified_and_reported_numbers_stand_together_best_first() -> None:
    found = {
        "mine": results(("rded", 10, [30.0, 31.0, 32.0]), ("random", 10, [None]), ("sre2l", 10, [24.0])),
        "again": results(("rded", 10, [33.0])),
    }
    [board] = boards(standings(found))
    assert board.title == "cifar10, IPC 10"
    shown = [(row.method, row.status, row.source, row.top1) for row in board.rows]
    # Tables 1 and 7 of the paper
    assert {(m, t) for m, s, _source, t in shown if s == "reported"} == {
        ("random", 42.3),
        ("rded", 37.3),
        ("sre2l", 29.7),
    }
    assert sum(s == "reported" for _m, s, *_rest in shown) == 3
    assert [(m, source, t) for m, s, source, t in shown if s == "verified"] == [
        ("rded", "again", 33.0),
        ("rded", "mine", 31.0),
        ("sre2l", "mine", 24.0),
    ]
    assert [t for *_rest, t in shown] == sorted((t for *_rest, t in shown), reverse=True)


def test_accuracy_on_validation_images_is_said_to_be() -> None:
    found = {"tuned": results(("rded", 10, [30.0]), tested_on="validation"), "mine": results(("rded", 10, [30.0]))}
    verified = [row for row in standings(found) if row.status == "verified"]
    assert [(row.source, row.protocol) for row in verified] == [
        ("tuned", "rd3, tested on validation images"),
        ("mine", "rd3"),
    ]


def test_the_page_links_every_verified_number_to_its_grid_and_escapes_foreign_text(tmp_path: Path) -> None:
    found = {"a <b>": results(("rded", 10, [30.0, 31.0, 32.0]))}
    path = write_leaderboard(found, {"a <b>": Published("Why & how.", "rd3 run grid.yaml")}, tmp_path)
    text = path.read_text()
    assert "<b>" not in text.replace("<b>verified</b>", "").replace("<b>reported</b>", "")
    assert text.count('href="a%20%3Cb%3E/report.html"') == 2
    assert "31.0 ± 1.0 [28.5, 33.5] (3)" in text and html.escape("Why & how.") in text
