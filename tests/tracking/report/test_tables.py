"""From cells and entries to tables: means and standard deviations by hand or by the standard library's statistics."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import statistics

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rd3.cell import Cell
from rd3.errors import BadValue
from rd3.protocol import EvalProtocol, protocol_names, resolve_protocol
from rd3.store import Entry
from rd3.values import neutral_values
from tracking.report.query import COLUMNS, rows
from tracking.report.scores import comparable_protocol, scores, summarise
from tracking.report.tables import (
    escape_markdown,
    letter,
    reduced_text,
    result_table,
    result_tables,
    to_csv,
    to_markdown,
    top1_text,
)

TEACHER = "aa" * 32


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Results:
    """Cells of a made-up grid and a ledger that answers for them."""

    def __init__(self, network: str = "resnet18"):
        self.cells: list[Cell] = []
        self.entries: dict[tuple[str, str], Entry] = {}
        self._file("teacher", TEACHER, {"network": network}, {"top1_pct": 89.5})

    def find(self, kind: str, key: str) -> Entry | None:
        return self.entries.get((kind, key))

    def _file(self, kind: str, key: str, recipe: dict, result: dict) -> None:
        self.entries[kind, key] = Entry(kind=kind, key=key, recipe=recipe, result=result)

    def add(self, method, ipc, tops, *, set_seed=0, tested_on="test", reason="", ran="bf16", **more):
        """One cell for each of ``tops`` (student seeds 0, 1 ...); None is a repeat that is not done."""
        fields = {
            "dataset": "cifar10",
            "teacher": "r18",
            "student": "resnet18",
            "protocol": "rd3",
            "labels": "soft",
            "varied": {},
            "overrides": {},
        } | more
        changed = fields["varied"] | fields["overrides"] | ({"labels": "hard"} if fields["labels"] == "hard" else {})
        changed = {name: value for name, value in changed.items() if name in protocol_names()}
        resolved = resolve_protocol(
            fields["protocol"], factor=1, same_network=True, set_size=10 * ipc, overrides=changed
        ).model_dump(mode="json")
        made = _key(method, ipc, set_seed, fields["dataset"])
        teachers = [] if method == "random" else [TEACHER]
        self._file(
            "set", made, {"teachers": teachers}, {"generation_wall_s": 10.0 + set_seed, "generation_process_s": 9.0}
        )
        for seed, top in enumerate(tops):
            key = None if reason else _key(made, seed, sorted(map(str, fields.items())), tested_on)
            self.cells.append(
                Cell(
                    method=method,
                    ipc=ipc,
                    set_seed=set_seed,
                    student_seed=seed,
                    set=None if reason else made,
                    evaluation=key,
                    reason=reason,
                    **fields,
                )
            )
            if key is not None and top is not None:
                recipe = {
                    "protocol": resolved,
                    "teachers": [TEACHER] if fields["labels"] == "soft" else [],
                    "tested_on": tested_on,
                }
                result = {"top1_pct": top, "correct": round(top * 100), "tested": 10000, "wall_s": 60.0}
                result["ran_precision"] = ran if isinstance(ran, str) else ran[seed]
                self._file("evaluation", key, recipe, result)

    def scores(self):
        return scores(rows(self.cells, self.find))


def test_rows_hold_the_cell_and_what_the_ledger_says():
    results = Results()
    results.add("rded", 10, [40.5, None])
    results.add("edc", 10, [None], reason="needs more images")
    frame = rows(results.cells, results.find)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["status"].tolist() == ["done", "missing", "unsupported"]
    done = frame.iloc[0]
    assert (done["top1_pct"], done["correct"], done["tested"]) == (40.5, 4050, 10000)
    assert (done["generation_wall_s"], done["generation_process_s"]) == (10.0, 9.0)
    assert done["teacher_network"] == "resnet18"
    assert frame.iloc[1]["top1_pct"] is None
    assert frame.iloc[2]["reason"] == "needs more images"


def test_the_teacher_of_a_row_has_its_own_role():
    results = Results()
    results.add("rded", 10, [40.5, None], overrides={"label_teachers": ["of-labels", "another"]})
    results.add("rded", 10, [30.5], labels="hard")
    frame = rows(results.cells, results.find)
    assert frame["teacher_role"].tolist() == ["of-labels", "r18", "r18"], "where it is not run: of the set"
    assert set(frame["teacher_key"]) == {TEACHER}


def test_numbers_of_two_precisions_are_marked():
    results = Results()
    results.add("random", 10, [40.0, 41.0], ran="bf16")
    results.add("rded", 10, [40.0, 41.0], ran=("bf16", "fp32"))
    results.add("edc", 10, [42.0, 43.0], ran="fp32")
    (table,) = result_tables(results.scores())
    marked = {
        row.label: [table.notes["abc".index(mark)] for mark in table.markers(row.scores[10])] for row in table.rows
    }
    mixed = "rded at IPC 10: repeats ran at bf16 and fp32"
    assert marked == {"random": ["ran at bf16"], "rded": [mixed], "edc": ["ran at fp32"]}
    text = to_markdown(table)
    assert "40.5 (2 seeds) [a]" in text and "] ran at fp32." in text
    alike = Results()
    alike.add("random", 10, [40.0, 41.0], ran="fp32")
    assert not result_tables(alike.scores())[0].notes


def test_rows_of_nothing():
    frame = rows([], lambda kind, key: None)
    assert list(frame.columns) == list(COLUMNS)
    assert scores(frame) == []


def test_mean_and_std_over_student_seeds():
    values = [41.0, 42.0, 44.5]
    got = summarise(values, [0, 0, 0])
    assert got.n == 3
    assert got.mean == pytest.approx(statistics.mean(values))
    assert got.std == pytest.approx(statistics.stdev(values))
    assert got.std_sets is None and got.std_students is None
    # t quantile 0.975 with two degrees of freedom, from a printed table.
    assert got.half_95 == pytest.approx(4.302653 * statistics.stdev(values) / 3**0.5, rel=1e-6)


def test_std_is_split_where_both_seeds_vary():
    first, second = [40.0, 41.0], [44.0, 47.0]
    got = summarise([*first, *second], [0, 0, 1, 1])
    assert got.mean == pytest.approx(43.0)
    assert got.std == pytest.approx(statistics.stdev([*first, *second]))
    assert got.std_sets == pytest.approx(statistics.stdev([40.5, 45.5]))
    assert got.std_students == pytest.approx(((0.5 + 4.5) / 2) ** 0.5)
    # Sets are what is independent: one degree of freedom.
    assert got.half_95 == pytest.approx(12.706205 * statistics.stdev([40.5, 45.5]) / 2**0.5, rel=1e-6)


@pytest.mark.parametrize("sets", [3, 5])
def test_intervals_over_set_seeds_cover_the_truth(sets):
    # Two students of a set share its effect: only sets are independent.
    draw = np.random.default_rng(sets)
    values = 40 + draw.normal(0, 2, (2000, sets, 1)) + draw.normal(0, 1, (2000, sets, 2))
    seeds = [seed for seed in range(sets) for _student in range(2)]
    intervals = [summarise(row.ravel().tolist(), seeds).interval for row in values]
    assert 0.93 <= np.mean([low <= 40 <= high for low, high in intervals]) <= 0.97


def test_an_interval_stays_within_what_an_accuracy_can_be():
    assert summarise([99.0, 99.5, 97.0], [0, 0, 0]).interval[1] == 100.0
    assert summarise([1.0, 0.5, 3.0], [0, 0, 0]).interval[0] == 0.0


def test_one_value_has_no_std():
    got = summarise([40.0], [0])
    assert (got.n, got.std, got.half_95) == (1, None, None)


def test_seeds_become_one_score_and_the_text_says_how_many():
    results = Results()
    results.add("rded", 10, [40.0, 41.0, 42.0])
    results.add("rded", 1, [22.0])
    one, ten = results.scores()
    assert top1_text(one) == "22.0 (n=1)"
    assert top1_text(ten) == "41.0 ± 1.0 [38.5, 43.5] (3)"
    assert ten.delta == pytest.approx(41.0 - 37.3)


def test_text_shows_both_stds_and_generation_time_is_the_mean_over_sets():
    results = Results()
    results.add("rded", 10, [40.0, 41.0], set_seed=0)
    results.add("rded", 10, [44.0, 47.0], set_seed=1)
    (score,) = results.scores()
    # Two set seeds give no interval, however many students they have.
    assert top1_text(score) == "43.0 (4, of 2 set seeds; set seeds ± 3.5, student seeds ± 1.6)"
    assert score.generation_wall_s == pytest.approx(10.5)


def test_a_reduced_cell_shows_made_over_published_and_no_difference():
    results = Results()
    results.add("sre2l", 10, [28.0, 29.0], reduced={"iterations": (100, 1000)})
    (score,) = results.scores()
    assert score.paper.mean == 29.7
    assert score.delta is None
    assert reduced_text(score.reduced) == "iterations 100/1000"
    (line,) = (line for line in to_markdown(result_table([score])).splitlines() if line.startswith("| sre2l"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["sre2l", "10", "28.5 (2 seeds)", "29.7 ± 0.8", "", "iterations 100/1000"]


@pytest.mark.parametrize(
    ("more", "network"),
    [
        ({"overrides": {"temperature": 4.0}}, "resnet18"),
        ({"protocol": "rd3-reduced"}, "resnet18"),
        ({"tested_on": "validation"}, "resnet18"),
        ({"dataset": "digits"}, "resnet18"),
        ({}, "resnet18_w16"),
    ],
)
def test_another_experiment_has_no_difference(more, network):
    results = Results(network)
    results.add("rded", 10, [40.0], **more)
    (score,) = results.scores()
    assert score.delta is None


def test_the_difference_survives_what_the_paper_leaves_open():
    results = Results()
    results.add("rded", 10, [40.0], overrides={"precision": "fp32"})
    results.add("random", 10, [24.5], labels="hard", overrides={"labels": "hard"})
    by_method = {score.method: score for score in results.scores()}
    assert by_method["rded"].delta == pytest.approx(2.7)
    assert by_method["random"].delta == pytest.approx(24.5 - 23.5)


def test_a_column_refuses_two_protocols():
    results = Results()
    results.add("rded", 10, [40.0])
    results.add("random", 10, [39.0], protocol="rd3-reduced")
    with pytest.raises(BadValue, match=r"Column cifar10, IPC 10 mixes protocols: rd3 .* and rd3-reduced"):
        result_table(results.scores())
    assert len(result_tables(results.scores())) == 2


def test_a_column_refuses_two_sets_of_fields_under_one_name():
    results = Results()
    results.add("rded", 10, [40.0])
    results.add("random", 10, [39.0], overrides={"temperature": 4.0})
    with pytest.raises(BadValue, match="mixes protocols"):
        result_table(results.scores())


def test_soft_and_hard_labels_are_tables_of_their_own():
    results = Results()
    results.add("random", 10, [39.0])
    results.add("random", 10, [24.0], labels="hard", overrides={"labels": "hard"})
    soft, hard = result_tables(results.scores())
    assert (soft.labels, hard.labels) == ("soft", "hard")
    assert hard.changed == ""


def test_rows_stand_in_grid_order_with_ipc_ascending():
    results = Results()
    for method in ("rded", "zebra", "random"):
        for ipc in (50, 1, 10):
            results.add(method, ipc, [30.0, 31.0])
    results.add("sre2l", 1, [30.0])
    text = to_markdown(result_tables(results.scores())[0])
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]
    expected = [[method, ipc] for method in ("rded", "zebra", "random") for ipc in ("1", "10", "50")]
    assert cells[1:] == [*expected, ["sre2l", "1"]]


def test_the_order_of_seeds_changes_nothing():
    results = Results()
    for method in ("rded", "random"):
        results.add(method, 1, [30.0, 31.0, 34.0])
    expected = to_markdown(result_tables(results.scores())[0])
    for seed in range(3):
        rows_of = [results.cells[:3], results.cells[3:]]
        results.cells = [cell for cells in rows_of for cell in random.Random(seed).sample(cells, 3)]
        assert to_markdown(result_tables(results.scores())[0]) == expected


def test_a_method_as_published_stands_before_its_variants():
    results = Results()
    results.add("cda", 10, [25.0], overrides={"cda.curriculum": "none"})
    results.add("cda", 10, [27.0])
    assert [dict(score.overrides) for score in results.scores()] == [{}, {"cda.curriculum": "none"}]


def test_footnotes_for_unsupported_and_partial_cells():
    results = Results()
    results.add("rded", 10, [40.0, None, 41.0])
    results.add("edc", 10, [None], reason="needs <50> images | a class")
    (table,) = result_tables(results.scores())
    text = to_markdown(table)
    assert "| rded | 10 | 40.5 (2 seeds) [a] |" in text
    assert "| edc | 10 | – [b] |" in text
    assert "[b] edc at IPC 10: needs &lt;50> images \\| a class." in text
    assert "[a] rded at IPC 10: 2 of 3 repeats done." in text


def test_settings_that_differ_between_rows_name_them_and_shared_ones_go_to_the_caption():
    results = Results()
    results.add("rded", 10, [40.0], overrides={"rded.crops": 5})
    results.add("rded", 10, [41.0], overrides={"rded.crops": 8})
    (table,) = result_tables(results.scores())
    assert [row.label for row in table.rows] == ["rded (rded.crops=5)", "rded (rded.crops=8)"]
    shared = Results()
    shared.add("rded", 10, [40.0], overrides={"temperature": 4.0})
    (table,) = result_tables(shared.scores())
    assert table.setting == "protocol rd3 with temperature=4.0, teacher r18"
    assert table.rows[0].label == "rded"


def test_varied_points_are_in_the_csv_and_not_in_the_tables():
    results = Results()
    results.add("rded", 10, [40.0, 41.0])
    results.add("rded", 10, [38.0, 39.0], varied={"temperature": 4.0})
    found = results.scores()
    (table,) = result_tables(found)
    assert top1_text(table.rows[0].scores[10]) == "40.5 (2 seeds)"
    lines = list(csv.DictReader(io.StringIO(to_csv(found, result_tables(found)))))
    assert [line["varied"] for line in lines] == ["", "temperature=4.0"]
    assert [float(line["top1_pct_mean"]) for line in lines] == [40.5, 38.5]
    assert float(lines[0]["difference"]) == pytest.approx(40.5 - 37.3)
    assert lines[1]["difference"] == ""
    assert len(lines[0]["evaluations"].split()) == 2


def test_letters_of_footnotes():
    assert [letter(index) for index in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


def test_results_from_before_a_field_was_added_are_of_the_same_protocol():
    full = resolve_protocol("rd3", factor=1, same_network=True, set_size=10).model_dump(mode="json")
    older = {name: value for name, value in full.items() if name not in neutral_values(EvalProtocol)}
    assert {"drop_at", "schedule", "label_top_k"} <= full.keys() - older.keys()
    assert comparable_protocol(older) == comparable_protocol(full)
    assert comparable_protocol(full | {"soft_labels": "once"}) != comparable_protocol(full)
    assert comparable_protocol(full | {"zeta": 2.0}) != comparable_protocol(full)


APART = {"rded": [40.0, 41.0, 42.5, 41.2], "random": [39.8, 41.1, 42.6, 41.0], "sre2l": [20.0, 21.1, 22.4, 21.2]}


def test_the_best_and_what_is_equal_to_it_within_noise_are_marked():
    results = Results()
    for method, tops in APART.items():
        results.add(method, 10, tops)
    results.add("cda", 10, [99.0, 98.0], ran="bf16", overrides={"cda.curriculum": "none"})
    results.add("edc", 10, [None])
    (table,) = result_tables(results.scores())
    found = {row.label: table.standing(row, 10) for row in table.rows}
    # The best has two seeds, too few for any test.
    assert found == {"rded": "", "random": "", "sre2l": "", "cda (cda.curriculum=none)": "best", "edc": ""}
    results.cells = [cell for cell in results.cells if cell.method != "cda"]
    (table,) = result_tables(results.scores())
    found = {row.label: table.standing(row, 10) for row in table.rows}
    assert found == {"rded": "best", "random": "equal", "sre2l": "", "edc": ""}
    text = to_markdown(table)
    assert "| **41.2 ± 1.0 [39.5, 42.8] (4)** |" in text
    assert "(4)** ≈ |" in text
    assert "Bold and ≈: equal to it within noise" in text


def test_a_shared_highest_mean_is_marked_wherever_it_stands():
    results = Results()
    seeds = [40.0, 41.0, 42.0]
    for method, tops in {"rded": seeds, "edc": [41.0], "cda": seeds[::-1], "random": [39.0]}.items():
        results.add(method, 10, tops)
    (table,) = result_tables(results.scores())
    found = {row.label: table.standing(row, 10) for row in table.rows}
    assert found == {"rded": "best", "edc": "best", "cda": "best", "random": ""}


def test_a_column_with_one_result_marks_nothing():
    results = Results()
    results.add("rded", 10, APART["rded"])
    results.add("random", 10, [None])
    (table,) = result_tables(results.scores())
    assert table.legend == ""
    assert "**41" not in to_markdown(table)


def test_set_seeds_are_the_units_of_a_column_where_they_vary():
    results = Results()
    for method, shift in (("rded", 0.0), ("random", 0.2)):
        for seed, top in enumerate((40.0, 44.0, 41.0)):
            results.add(method, 10, [top + shift * seed, top + 1 + shift * seed], set_seed=seed)
    (table,) = result_tables(results.scores())
    column = table.columns[10]
    [one] = column.comparisons
    assert (column.unit, one.shared) == ("set seeds", 3)
    assert one.difference.p_value == pytest.approx(scipy_stats.ttest_1samp([0.0, 0.2, 0.4], 0).pvalue)


def test_the_csv_has_the_interval_the_variance_split_and_the_standing():
    results = Results()
    groups = {0: [40.0, 41.0], 1: [44.0, 47.0], 2: [39.0, 38.0]}
    for seed, tops in groups.items():
        results.add("rded", 10, tops, set_seed=seed)
    results.add("random", 10, [30.0], ran="fp32")
    found = results.scores()
    rded, other = csv.DictReader(io.StringIO(to_csv(found, result_tables(found))))
    low, high = scipy_stats.t.interval(0.95, 2, loc=41.5, scale=scipy_stats.sem([40.5, 45.5, 38.5]))
    assert (float(rded["low_95"]), float(rded["high_95"])) == (pytest.approx(low), pytest.approx(high))
    within = statistics.mean(statistics.variance(tops) for tops in groups.values())
    between = statistics.variance([40.5, 45.5, 38.5]) - within / 2
    assert float(rded["variance_student_seeds"]) == pytest.approx(within)
    assert float(rded["variance_set_seeds"]) == pytest.approx(between)
    assert (rded["units"], rded["standing"], rded["precisions"]) == ("3", "best", "bf16")
    assert (other["units"], other["low_95"], other["standing"], other["precisions"]) == ("1", "", "", "fp32")


@pytest.mark.parametrize("text", ["![](http://a.example/t.png)", "[a](javascript:alert(1))", "<img src=x>"])
def test_names_cannot_become_links_or_pictures_in_markdown(text):
    markdown = pytest.importorskip("markdown", reason="the extra docs is not installed")
    rendered = markdown.markdown(escape_markdown(text))
    assert "<a" not in rendered and "<img" not in rendered
