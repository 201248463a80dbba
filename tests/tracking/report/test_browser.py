"""The page in a real browser: sorting, filtering, links to evaluations, and its width on a phone.

Steps run in the page itself; the browser prints the page that they leave behind.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rd3.errors import DataMissing
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.page import write_report
from tracking.report.results import Results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

WATCH = """<script>
const problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
console.error = (...words) => problems.push(words.join(" "));
</script>"""
STEPS = """<script>
(async () => {
  const found = {};
  const later = () => new Promise(done => setTimeout(done, 300));
  const one = selector => document.querySelector(selector);
  const firsts = table => [...table.querySelectorAll("tbody tr:not([hidden])")].map(row => row.cells[0].textContent);
  const type = (input, text) => { input.value = text; input.dispatchEvent(new Event("input")); };
  try { %s } catch (error) { problems.push(String(error)); }
  parent.postMessage(JSON.stringify({ ...found, problems, width: innerWidth }), "*");
})();
</script>"""
FRAME = """<!doctype html><pre id="outcome"></pre>
<script>addEventListener("message", event => { document.getElementById("outcome").textContent = event.data; });</script>
<iframe src="page.html" style="width: %dpx; height: 800px; border: 0"></iframe>"""
"""A window of a browser without a screen is at least 500 pixels wide; a frame may be as wide as a phone."""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    grid = Grid()
    tops = {"zebra": [41.0, 42.0, 42.2], "rded": [40.0, 41.0, 42.5], "random": [9.0, 9.5, 10.0], "sre2l": [28.0]}
    for method, values in tops.items():
        grid.add(method, 10, values)
        grid.add(method, 1, values[:1])
    grid.add("edc", 10, [None, None])
    grid.add("rded", 10, [30.0, 31.0], varied={"temperature": 4.0})

    def fetch(kind, key):
        raise DataMissing("No files here.")

    out = tmp_path_factory.mktemp("page")
    name = "a-grid-with-a-long-name-" * 4
    paths = write_report(name, Results.of(grid.cells, grid.find), fetch, out, facts={"description": "words " * 50})
    return paths["report.html"].read_text(encoding="utf-8")


def outcome(page: str, folder: Path, steps: str, width: int = 1280) -> dict:
    """What ``steps``, JavaScript that fills ``found``, leave behind; a problem on the console is an error."""
    watched = page.replace("<head>", f"<head>{WATCH}").replace("</body>", f"{STEPS % steps}</body>")
    (folder / "page.html").write_text(watched, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % width, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options += ["--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, check=True, timeout=120)
    [text] = re.findall(r'<pre id="outcome">(.*?)</pre>', done.stdout)
    found = json.loads(html.unescape(text))
    assert found["problems"] == []
    assert found["width"] == width
    return found


def test_a_header_sorts_up_down_and_back_to_grid_order(page, tmp_path):
    found = outcome(page, tmp_path, """
      const table = one("table.results"), head = table.tHead.rows[0].cells[2], button = head.querySelector("button");
      button.focus();
      found.focus = document.activeElement === button && button.type === "button";
      found.states = [[head.getAttribute("aria-sort"), firsts(table)]];
      for (let step = 0; step < 3; step++) {
        button.click();
        found.states.push([head.getAttribute("aria-sort"), firsts(table)]);
      }
      table.tHead.rows[0].cells[0].querySelector("button").click();
      found.names = firsts(table);
      found.marked = [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort"));
    """)  # fmt: skip
    grid = ["zebra", "rded", "random", "sre2l", "edc"]
    assert found["focus"]
    assert found["states"] == [
        ["none", grid],
        ["ascending", ["random", "sre2l", "rded", "zebra", "edc"]],  # 9.5 before 28: numbers; no result comes last
        ["descending", ["zebra", "rded", "sre2l", "random", "edc"]],
        ["none", grid],
    ]
    assert found["names"] == sorted(grid)
    assert found["marked"] == ["ascending", "none", "none"]


def test_a_text_box_filters_rows(page, tmp_path):
    found = outcome(page, tmp_path, """
      const box = one("#table-comparisons .filter"), input = box.querySelector("input");
      const table = one("#table-comparisons table");
      found.before = firsts(table).length;
      type(input, "RDED  noise");
      found.shown = [...table.querySelectorAll("tbody tr:not([hidden])")].map(row => row.textContent);
      found.count = box.querySelector("[role=status]").textContent;
      found.label = input.getAttribute("aria-label");
      type(input, "");
      found.after = firsts(table).length;
    """)  # fmt: skip
    assert found["before"] == found["after"] > len(found["shown"]) > 0
    assert all("rded" in text and "equal within noise" in text for text in found["shown"])
    assert found["count"] == f"{len(found['shown'])} of {found['before']} rows"
    assert found["label"].startswith("Filter rows of table")


def test_a_result_leads_to_its_evaluations(page, tmp_path):
    found = outcome(page, tmp_path, """
      const part = one("#evaluations"), row = one("table.results tbody").rows[1];
      const link = row.cells[2].querySelector("a"), seen = () => one(link.hash).getBoundingClientRect();
      found.closed = !part.open;
      link.click();
      await later();
      found.open = part.open && seen().height > 0 && seen().top >= -1 && seen().bottom <= innerHeight;
      found.rows = [...one(link.hash).rows].map(row => [...row.cells].map(cell => cell.textContent));
      type(part.querySelector(".filter input"), "sre2l");
      part.open = false;
      link.click();
      await later();
      found.again = part.open && seen().height > 0;
    """)  # fmt: skip
    assert found["closed"] and found["open"] and found["again"]
    columns = [(row[0], row[2], row[7], row[8], row[10]) for row in found["rows"]]
    assert columns == [
        ("rded", "10", f"0 / {seed}", top, "bf16") for seed, top in enumerate(("40.00", "41.00", "42.50"))
    ]


def test_evaluations_sort_by_result_and_stay_together(page, tmp_path):
    found = outcome(page, tmp_path, """
      one("#evaluations").open = true;
      const table = one("#evaluations table"), bodies = () => [...table.tBodies];
      const names = () => bodies().map(body => body.rows[0].cells[0].textContent);
      found.before = names();
      found.sizes = bodies().map(body => body.rows.length).sort();
      table.tHead.rows[0].cells[0].querySelector("button").click();
      found.after = names();
      found.sorted = bodies().map(body => body.rows.length).sort();
    """)  # fmt: skip
    assert found["after"] == sorted(found["before"]) != found["before"]
    assert found["sizes"] == found["sorted"]


WIDTHS = """
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  found.page = document.documentElement.scrollWidth;
  found.beyond = [...document.querySelectorAll("body *")].filter(part => !part.closest(".scroll, svg") &&
    part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80));
  found.clipped = [...document.querySelectorAll(".scroll")].filter(part => part.scrollWidth > part.clientWidth &&
    getComputedStyle(part).overflowX !== "auto").length;
"""
"""Steps that find what is wider than the window, or cut off in a box that does not scroll."""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_at_the_side(page, tmp_path, width):
    found = outcome(page, tmp_path, WIDTHS, width)
    assert found["page"] <= width
    assert found["beyond"] == []
    assert found["clipped"] == 0
