"""LaTeX: every special character is escaped, and rows have the columns that the table declares."""

from __future__ import annotations

import re

import pytest

from tests.tracking.report.test_tables import APART, Results
from tracking.report.latex import escape, latex_of_results, latex_of_texts
from tracking.report.tables import result_tables

NASTY = r"50% of {x}_1 & $y$ #2 ~ ^ \input{/etc/passwd} <a> | [b] * \\ ±−–≈× `q` " + '"'


def test_every_special_character_is_escaped():
    text = escape(NASTY)
    expected = (
        r"50\% of \{x\}\_1 \& \$y\$ \#2 \textasciitilde{} \textasciicircum{} \textbackslash{}input\{/etc/passwd\} "
        r"\textless{}a\textgreater{} \textbar{} {[}b{]} {*} \textbackslash{}\textbackslash{} "
        r"$\pm$$-$--$\approx$$\times$ \textasciigrave{}q\textasciigrave{} \textquotedbl{}"
    )
    assert text == expected


@pytest.mark.parametrize("sign", "&%$#_{}~^")
def test_no_special_character_stands_alone(sign):
    left = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]", "", escape(f"a{sign}b{sign}"))
    assert left == "ab"


def test_line_breaks_become_spaces():
    assert escape("a\nb\n\n c") == "a b c"


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines]


def test_a_result_table_marks_the_best_and_its_equals():
    results = Results()
    for method, tops in APART.items():
        results.add(method, 10, tops)
    results.add("rded", 1, [21.0, 22.0])
    results.add("edc", 10, [None], reason=NASTY)
    results.add("cda", 10, [20.0], reduced={"iterations": (100, 1000)})
    (table,) = result_tables(results.scores())
    text = latex_of_results(table)
    head, *rows = _cells(text)
    assert head == ["Method", "IPC 1", "paper", "IPC 10", "paper"]
    found = {row[0]: row[1:] for row in rows}
    assert all(len(row) == 5 for row in rows)
    assert r"\begin{tabular}{lllll}" in text
    assert found["rded"][0] == "21.5 (2 seeds)"
    assert found["rded"][2] == r"\textbf{41.2 $\pm$ 1.0 {[}39.5, 42.8{]} (4)}"
    assert found["random"][2].startswith(r"\underline{\textbf{41.1 $\pm$")
    assert found["sre2l"][2].startswith("21.2")
    assert found["cda"][2] == "20.0 (n=1) iterations 100/1000"
    assert found["edc"][2] == "--$^{a}$"
    assert f"$^{{a}}$ {escape(f'edc at IPC 10: {NASTY}')}." in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert "Bold and underlined: equal to it within noise" in text


def test_a_table_of_texts():
    text = latex_of_texts(f"Title {NASTY}", ["a & b", "c"], [["1", "2 & 3"], ["*", "[x]"]], note="50 %")
    assert _cells(text) == [[r"a \& b", "c"], ["1", r"2 \& 3"], ["{*}", "{[}x{]}"]]
    assert f"\\caption{{Title {escape(NASTY)}.}}" in text
    assert r"\footnotesize 50 \%" in text
