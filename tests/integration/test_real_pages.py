"""Pages of real grids in a real browser: the committed results, imported, reported and published, at two widths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.report.test_browser import BROWSER, WIDTHS, outcome

STUDIES = Path(__file__).parents[2] / "docs" / "results" / "studies"
GRIDS = (
    "table12-small",
    "table7-small",
    "figure4-small",
    "figure10-small",
    "claim-random-small",
    "dd-ranking",
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.long,
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reports of the grids and their leaderboard, made by the commands that a user types."""
    folder = tmp_path_factory.mktemp("site")
    foreign = ("RD3_ARTIFACTS", "MLFLOW_TRACKING_URI", "RD3_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    for words in (["import-results", str(STUDIES)], ["publish", *GRIDS, "--out", str(folder / "site")]):
        command = [str(Path(sys.executable).parent / "rd3"), *words]
        subprocess.run(command, env=environment | {"RD3_HOME": str(folder / "home")}, check=True, capture_output=True)
    yield folder / "site"


FITS = """
  found.tall = [...document.querySelectorAll("tbody tr")].map(row => row.getBoundingClientRect().height);
  found.charts = [...document.querySelectorAll("figure svg")].map(chart => ({
    texts: [...chart.querySelectorAll("text")].map(text => text.getBoundingClientRect().height),
    outside: [...chart.querySelectorAll("text")].filter(text => {
      const [own, all] = [text.getBoundingClientRect(), chart.getBoundingClientRect()];
      const past = [all.left - own.left, own.right - all.right, all.top - own.top, own.bottom - all.bottom];
      return Math.max(...past) > 2;
    }).map(text => text.textContent),
  }));
"""
SORTS = """
  const sortable = [...document.querySelectorAll("table")].filter(table => table.querySelector("button.sort"));
  found.sortable = sortable.length;
  found.columns = sortable.map(table => [...table.tHead.rows[0].cells].map((head, column) => {
    head.querySelector("button").click();
    const texts = [...table.tBodies].flatMap(body => [...body.rows].slice(0, table.tBodies.length > 1 ? 1 : undefined))
      .map(row => (row.cells[column].dataset.sort ?? row.cells[column].textContent).trim());
    const state = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    head.querySelector("button").click();
    return { state, texts, back: head.getAttribute("aria-sort") };
  }));
  const box = one(".filter"), table = box && box.nextElementSibling.querySelector("table");
  if (box) {
    const rows = () => [...table.querySelectorAll("tbody tr:not([hidden])")].map(row => row.textContent.toLowerCase());
    found.all = rows();
    found.word = table.querySelector("tbody").rows[0].cells[0].textContent.trim().toLowerCase();
    type(box.querySelector("input"), found.word);
    found.filtered = rows();
    type(box.querySelector("input"), "");
  }
"""
LEADS = """
  const link = one("table a.cell"), part = one("#evaluations");
  found.closed = !part.open;
  link.click();
  await later();
  const rows = one(link.hash), place = rows.getBoundingClientRect();
  found.seen = part.open && place.height > 0 && place.bottom > 0 && place.top < innerHeight;
  found.keys = [...rows.rows].map(row => row.cells[11].textContent);
  found.shown = link.textContent;
  found.tops = [...rows.rows].map(row => Number(row.cells[8].textContent));
"""


def ascends(texts: list[str]) -> bool:
    """Whether a column that has only plain numbers ascends, and its empty cells come last; other columns pass."""
    filled = [text for text in texts if text]
    if texts[: len(filled)] != filled:
        return False
    numbers = [float(text) for text in filled if re.fullmatch(r"-?\d+(\.\d+)?", text)]
    return len(numbers) < len(filled) or numbers == sorted(numbers)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", [*GRIDS, ""])
def test_a_page_fits_its_window_and_its_tables_sort_and_filter(
    site: Path, tmp_path: Path, page: str, width: int
) -> None:
    text = (site / page / ("report.html" if page else "index.html")).read_text(encoding="utf-8")
    found = outcome(text, tmp_path, WIDTHS + FITS + SORTS, width)
    assert found["page"] <= width
    assert found["beyond"] == [] and found["clipped"] == 0
    assert max(found["tall"]) < 300, "a row is taller than a screen shows: its text is squeezed into a narrow column"
    for chart in found["charts"]:
        assert chart["outside"] == [], "a label of a chart is cut off"
        assert len(chart["texts"]) >= 3 and min(chart["texts"]) > 5, "a chart has ticks and labels of a legible size"
    assert found["sortable"] > 0
    for column in (column for table in found["columns"] for column in table):
        assert (column["state"], column["back"]) == ("ascending", "none")
        assert ascends(column["texts"])
    assert 0 < len(found["filtered"]) == sum(found["word"] in row for row in found["all"])
    assert all(found["word"] in row for row in found["filtered"])


@pytest.mark.parametrize("page", GRIDS)
def test_a_result_leads_to_evaluations_whose_recipes_are_published(site: Path, tmp_path: Path, page: str) -> None:
    found = outcome((site / page / "report.html").read_text(encoding="utf-8"), tmp_path, LEADS, 390)
    assert found["closed"] and found["seen"]
    tops = [top for top in found["tops"] if top is not None]  # a repeat may be missing
    mean = sum(tops) / len(tops)
    assert re.match(r"[\d.]+", found["shown"])[0] == f"{mean:.1f}"
    recipes = [file.stem.rpartition("-")[2] for file in (site / page / "recipes").glob("*-evaluation-*.json")]
    assert set(found["keys"]) <= {key[:12] for key in recipes}


def test_every_link_of_the_leaderboard_leads_to_a_file(site: Path) -> None:
    links = re.findall(r'href="([^"#]+)"', (site / "index.html").read_text(encoding="utf-8"))
    assert {f"{grid}/report.html" for grid in GRIDS} <= set(links)
    assert all((site / link).is_file() for link in links)
