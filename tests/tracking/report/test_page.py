"""The report, from a real store on disk: what the page says, and that it is one well-formed file that loads nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from rd3.cell import Cell
from rd3.datasets import dataset_info
from rd3.methods import Block
from rd3.protocol import resolve_protocol
from rd3.store import Entry, FolderStore, sha256_file, sha256_files
from rd3.synthetic_set import SetWriter
from rd3.testing import ToyDataset, trial_recipe
from tests.tracking.report.test_tables import TEACHER
from tests.tracking.report.test_tables import Results as Grid
from tracking.report.page import write_report
from tracking.report.results import Results

VOID = {"meta", "img", "br", "link", "hr", "input"}
NASTY = "<script>alert('x')</script> & \"quotes\" | pipe"


class Reader(HTMLParser):
    """Checks that tags nest and collects what a page shows and would load."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.loaded += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]
        self.loaded += [values["href"]] if tag == "link" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _put(store, folder, kind, key, recipe, result, picture=None):
    folder = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    if picture is not None:
        Image.new("RGB", (32, 64), picture).save(folder / "contact_sheet.png")
    made = {"code_version": "9.8.7", "device": "Test CPU", "threads": 1, "finished_at": "2026-11-23T10:00:00+00:00"}
    files = sha256_files(folder)
    store.put(Entry(kind=kind, key=key, recipe=recipe, result=result, files=files, made=made), folder)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A grid with results, a varied field, a failed repeat and an unsupported pair; returns (paths, keys, store)."""
    root = tmp_path_factory.mktemp("report")
    store, scratch = FolderStore(root / "store"), root / "scratch"
    teacher = _key("teacher")
    _put(store, scratch, "teacher", teacher, {"network": "resnet18", "weights": "w"}, {"top1_pct": 89.53})
    cells, keys = [], {"teacher": teacher}
    points = [("random", {}, 39.7), ("rded", {}, 40.7), ("rded", {"temperature": 4.0}, 38.0)]
    points += [("rded", {"temperature": 40.0}, 41.0), ("sre2l", {}, 28.0)]
    for method, varied, top in points:
        made = _key(method)
        keys[method] = made
        figures = {"generation_wall_s": 12.5, "generation_process_s": 11.25}
        recipe = {"teachers": [] if method == "random" else [teacher]}
        _put(store, scratch, "set", made, recipe, figures, None if method == "random" else "red")
        protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=100, overrides=varied)
        for seed in range(2):
            key = _key(method, varied, seed)
            reduced = {"iterations": (100, 1000)} if method == "sre2l" else {}
            cells.append(
                Cell(
                    method=method,
                    dataset="cifar10",
                    ipc=10,
                    teacher="r18",
                    student="resnet18",
                    protocol="rd3",
                    labels="soft",
                    varied=varied,
                    set_seed=0,
                    student_seed=seed,
                    set=made,
                    evaluation=key,
                    reduced=reduced,
                )
            )
            if (method, seed) == ("sre2l", 1):
                keys["failed"] = key
                continue
            recipe = {"protocol": protocol.model_dump(mode="json"), "teachers": [teacher], "tested_on": "test"}
            result = {"top1_pct": top + seed, "correct": round(100 * (top + seed)), "tested": 10000, "wall_s": 61.0}
            _put(store, scratch, "evaluation", key, recipe, result)
    cells.append(
        Cell(
            method="edc",
            dataset="cifar10",
            ipc=10,
            teacher="r18",
            student="resnet18",
            protocol="rd3",
            labels="soft",
            set_seed=0,
            student_seed=0,
            set=None,
            evaluation=None,
            reason=NASTY,
        )
    )
    facts = {"description": NASTY, "failures": {keys["failed"]: "diverged: loss is NaN"}, "timing": "shared"}
    paths = write_report("my <grid>", Results.of(cells, store.find), store.fetch, root / "out", facts=facts)
    return paths, keys, store, cells


@pytest.fixture(scope="module")
def page(report) -> Reader:
    return Reader(report[0]["report.html"].read_text(encoding="utf-8"))


def test_page_tables_and_charts_are_written(report):
    charts = {name for name in report[0] if name.startswith("charts/")}
    tables = {name for name in report[0] if name.startswith("tables/")}
    assert set(report[0]) - charts - tables == {"report.md", "results.csv", "evaluations.csv", "report.html"}
    assert "charts/2-sensitivity-to-temperature.svg" in charts
    page = report[0]["report.html"].read_text(encoding="utf-8")
    assert all(report[0][name].read_text(encoding="utf-8") in page for name in charts)
    assert all(path.as_posix().endswith(name) and path.is_file() for name, path in report[0].items())


def test_a_report_in_the_folder_of_another_leaves_its_own_files_and_those_of_the_user(report, tmp_path):
    _paths, _keys, store, cells = report
    out = tmp_path / "out"

    def written(some, **facts):
        return write_report("g", Results.of(some, store.find), store.fetch, out, facts=facts)

    def found():
        return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {".report.json"}

    first = written(cells)
    assert found() == set(first)
    fewer = [cell for cell in cells if not cell.varied and cell.method == "rded"]
    assert {"charts/2-sensitivity-to-temperature.svg", "tables/comparisons.tex"} <= set(first) - set(written(fewer))
    second = written(fewer)
    assert found() == set(second)

    written(cells)
    users = {"charts/2-mine.svg", "charts/9-copy.svg", "tables/results-1-mine.tex", "notes.txt"}
    for name in users:
        (out / name).write_bytes((out / "charts/2-sensitivity-to-temperature.svg").read_bytes())
    (out / "tables/comparisons.tex").write_text("edited")
    written(fewer)
    assert found() == set(second) | users | {"tables/comparisons.tex"}
    for listing in ("cut {", "[]", json.dumps({"../notes.txt": sha256_file(out / "notes.txt")})):
        (out / ".report.json").write_text(listing)
        (tmp_path / "notes.txt").write_bytes((out / "notes.txt").read_bytes())
        written(fewer)
        assert (tmp_path / "notes.txt").is_file()


def test_the_page_is_well_formed(page):
    assert page.problems == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link[0] == "#" and link[1:] in page.ids for link in page.links)


def test_the_page_needs_nothing_but_itself(report, page):
    assert page.loaded and all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    text = report[0]["report.html"].read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", text)


def test_contact_sheets_are_the_stored_pictures(report, page):
    stored = (report[2].fetch("set", report[1]["rded"]) / "contact_sheet.png").read_bytes()
    pictures = [base64.b64decode(source.split(",", 1)[1], validate=True) for source in page.loaded]
    assert len(pictures) == 2  # rded and sre2l; random has none, and says so
    assert stored in pictures
    for picture in pictures:
        assert Image.open(io.BytesIO(picture)).size == (32, 64)
    assert page.text.count("No contact sheet: ") == 1


def test_a_contact_sheet_that_is_not_stored_is_drawn_from_the_images(tmp_path, report):
    _paths, keys, store, cells = report
    toy, rows = ToyDataset(classes=10, per_class=10, side=8), np.arange(100, dtype=np.uint8)
    blocks = [Block(0, tuple((row % 10, row // 10) for row in range(100)))]
    writer = SetWriter(tmp_path / "set", trial_recipe("random", toy, 10), toy.info, blocks)
    writer.add(blocks[0], torch.from_numpy(rows)[:, None, None, None].expand(-1, 3, 8, 8))  # filled with their number
    writer.finish()

    def fetch(kind, key):
        return tmp_path / "set" if key == keys["random"] else store.fetch(kind, key)

    paths = write_report("drawn", Results.of(cells, store.find), fetch, tmp_path / "out", facts={})
    page = paths["report.html"].read_text(encoding="utf-8")
    sheet = re.search(r'base64,([^"]+)" alt="Contact sheet of random', page)
    assert sheet is not None and not (tmp_path / "set" / "contact_sheet.png").exists()
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet[1]))))[34::66, 34::66, 0]
    assert shown.tolist() == [[label + 10 * k for k in range(10)] for label in range(10)]


def test_everything_is_escaped(report, page):
    assert page.tags.count("script") == 1  # the one that sorts and filters tables
    assert NASTY in page.text
    assert "<script" not in report[0]["report.md"].read_text(encoding="utf-8")
    assert "my <grid>" in page.text


def test_results_beside_the_papers(page):
    assert "40.2 (2 seeds)" in page.text  # random: 39.7 and 40.7
    assert "paper 42.3 ± 0.3, difference −2.1" in page.text
    assert "paper 37.3 ± 0.4, difference +3.9" in page.text  # rded: 40.7 and 41.7
    assert "iterations 100/1000 paper 29.7 ± 0.8 generated in" in page.text  # reduced: no difference
    assert "generated in 12.5 s (CPU 11.2 s)" in page.text


def test_what_was_run_is_said(page):
    assert "resnet18 trained on all training images: 89.53 % (teacher r18)." in page.text
    for words in ("Test CPU, 1 thread(s) a trial", "9.8.7", "2026-11-23 10:00:00 UTC", "89.53 %", "imported", "timing"):
        assert words in page.text
    assert "temperature 20.0" in page.text
    assert "8 done" not in page.text and "9 done, 1 missing, 1 unsupported" in page.text


def test_what_has_no_result_is_said_with_its_reason(page):
    assert "missing: diverged: loss is NaN" in page.text
    assert f"unsupported: {NASTY}" in page.text


def test_sensitivity_and_cost_are_drawn(page):
    assert page.tags.count("svg") == 3
    assert "Sensitivity to temperature" in page.text
    assert "temperature=40.0" in page.text


def test_keys_are_given(report, page):
    assert all(report[1][name][:12] in page.text for name in ("teacher", "rded", "random"))


def test_markdown_tables_have_equal_rows(report):
    text = report[0]["report.md"].read_text(encoding="utf-8")
    assert text.endswith("\n")
    block: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(block)) <= 1
            block = []
    assert "| rded | 10 | **41.2 (2 seeds)** | 37.3 ± 0.4 | +3.9 |" in text


def test_csv_holds_every_score_and_every_evaluation(report):
    lines = list(csv.DictReader(report[0]["results.csv"].read_text(encoding="utf-8").splitlines()))
    assert [(line["method"], line["varied"]) for line in lines] == [
        ("random", ""),
        ("rded", ""),
        ("rded", "temperature=4.0"),
        ("rded", "temperature=40.0"),
        ("sre2l", ""),
        ("edc", ""),
    ]
    evaluations = list(csv.DictReader(report[0]["evaluations.csv"].read_text(encoding="utf-8").splitlines()))
    assert [line["evaluation"] for line in evaluations] == [cell.evaluation or "" for cell in report[3]]
    assert [int(line["correct"]) for line in evaluations if line["correct"]] == [
        *(3970, 4070, 4070, 4170, 3800, 3900, 4100, 4200, 2800),
    ]


def test_a_grid_without_any_result_has_a_report_too(tmp_path, report):
    store = FolderStore(tmp_path / "empty")
    paths = write_report("later", Results.of(report[3], store.find), store.fetch, tmp_path, facts={})
    page = Reader(paths["report.html"].read_text(encoding="utf-8"))
    assert page.problems == []
    assert "not done" in page.text
    assert "svg" not in page.tags
    assert "not run yet" in page.text


def test_a_broken_artifact_costs_its_picture_only(tmp_path, report):
    _paths, keys, store, cells = report

    def fetch(kind, key):
        source = FolderStore(tmp_path / "gone") if key == keys["rded"] else store
        return source.fetch(kind, key)

    paths = write_report("damaged", Results.of(cells, store.find), fetch, tmp_path, facts={})
    page = Reader(paths["report.html"].read_text(encoding="utf-8"))
    assert f"No contact sheet: The store has no set {keys['rded'][:12]}." in page.text
    assert len(page.loaded) == 1


def test_every_cell_links_to_its_evaluations(report, page):
    text = report[0]["report.html"].read_text(encoding="utf-8")
    groups = dict(re.findall(r'<tbody id="(point-\d+)">(.*?)</tbody>', text, re.DOTALL))
    cells = dict(re.findall(r'<th scope="row">(.*?)</th>.*?href="#(point-\d+)"', text, re.DOTALL))
    assert set(cells) == {"random", "rded", "sre2l", "edc"}
    for method in ("random", "rded"):
        keys = re.findall(r"<code>(.*?)</code>", groups[cells[method]])
        expected = [[_key(method, {}, seed), report[1][method], report[1]["teacher"], ""] for seed in range(2)]
        assert keys == [key[:12] for row in expected for key in row]
    assert ">0 / 0<" in groups[cells["rded"]] and ">0 / 1<" in groups[cells["rded"]]
    varied = re.findall(r'temperature=4.0</td><td data-sort="38.5"><a class="cell" href="#(point-\d+)"', text)
    assert "temperature=4.0" in groups[varied[0]]


def test_every_teacher_of_a_pool_is_listed(tmp_path):
    grid, other = Grid(), "bb" * 32
    grid.add("rded", 10, [40.0, None], overrides={"label_teachers": ["r18", "narrow"]})
    grid.entries["teacher", other] = grid.entries["teacher", TEACHER].model_copy(
        update={"recipe": {"network": "resnet18_w16"}, "result": {"top1_pct": 80.25}}
    )
    key = ("evaluation", grid.cells[0].evaluation)
    entry = grid.entries[key]
    grid.entries[key] = entry.model_copy(update={"recipe": entry.recipe | {"teachers": [TEACHER, other]}})
    paths = write_report("pool", Results.of(grid.cells, grid.find), FolderStore(tmp_path).fetch, tmp_path, facts={})
    text = paths["report.md"].read_text()
    found = re.findall(r"^\| (\w+) \| cifar10 \| (\w+) \| ([\d.]+) % \|", text, re.M)
    assert found == [("r18", "resnet18", "89.50"), ("narrow", "resnet18_w16", "80.25")]


def test_contact_sheets_name_their_classes(tmp_path, report):
    _paths, keys, store, cells = report
    sheet = tmp_path / "contact_sheet.png"
    Image.new("RGB", (10 * 66 + 2, 10 * 66 + 2)).save(sheet)  # ten images of 64 pixels in each of ten rows

    def fetch(kind, key):
        return tmp_path if key == keys["rded"] else store.fetch(kind, key)

    paths = write_report("classes", Results.of(cells, store.find), fetch, tmp_path / "out", facts={})
    page = paths["report.html"].read_text(encoding="utf-8")
    names = re.findall(r'<li title="(.*?)">', page)
    assert names == list(
        dataset_info("cifar10").class_names
    )  # the other sheet, of 32 x 64 pixels, is not of this layout


def test_of_many_tables_the_first_have_a_chart_and_the_others_say_so(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tracking.report.figures.accuracy_chart", lambda table, name: drawn.append(table) or b"<svg/>")
    grid = Grid()
    for number in range(70):
        grid.add("rded", 10, [40.0, 41.0], setting=f"part {number}")
    paths = write_report("many", Results.of(grid.cells, grid.find), FolderStore(tmp_path).fetch, tmp_path, facts={})
    page = paths["report.html"].read_text(encoding="utf-8")
    assert [table.part for table in drawn] == [f"part {number}" for number in range(24)]
    assert page.count("Not drawn: with it, the accuracy charts would have more than 24 panels.") == 46
    assert page.count('<table class="results">') == 70
    assert len([name for name in paths if name.startswith("charts/")]) == 24
