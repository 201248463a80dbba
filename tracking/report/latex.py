"""Tables as LaTeX for a paper, with the rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tracking.report.scores import Score
from tracking.report.tables import READING, ResultTable, letter, paper_text, reduced_text, top1_text

ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}"},
    # A star or a bracket after \\ would be its argument.
    **{"*": "{*}", "[": "{[}", "]": "{]}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "≈": r"$\approx$", "×": r"$\times$"},
}
_SPECIAL = re.compile("|".join(map(re.escape, ESCAPES)))
HEAD = "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}"


def escape(text: str) -> str:
    """Text without special characters of LaTeX, on one line."""
    return _SPECIAL.sub(lambda found: ESCAPES[found.group()], " ".join(text.split()))


def latex_of_results(table: ResultTable) -> str:
    """A result table: methods by IPC, with the paper's values where there are any, and footnotes."""
    papers = {ipc: any(row.scores[ipc].paper for row in table.rows if ipc in row.scores) for ipc in table.ipcs}
    columns = ["Method"]
    for ipc in table.ipcs:
        columns += [f"IPC {ipc}", *(["paper"] if papers[ipc] else [])]
    rows = []
    for row in table.rows:
        cells = [escape(row.label)]
        for ipc in table.ipcs:
            score = row.scores.get(ipc)
            cells.append("" if score is None else _cell(score, table.standing(row, ipc), table.markers(score)))
            cells += [escape(paper_text(score.paper)) if score else ""] if papers[ipc] else []
        rows.append(cells)
    notes = [f"$^{{{letter(index)}}}$ {escape(note)}." for index, note in enumerate(table.notes)]
    notes += [escape(table.legend.format(equal="underlined"))] if table.legend else []
    caption = f"{escape(table.title)} ({escape(table.setting)}): top-1 accuracy in \\%, {escape(READING)}."
    return _floating(caption, [escape(column) for column in columns], rows, notes)


def _cell(score: Score, standing: str, markers: Sequence[str]) -> str:
    """The result with what was reduced; bold for the best, also underlined for what equals it within noise."""
    shown = escape(top1_text(score))
    if standing:
        shown = f"\\textbf{{{shown}}}"
    if standing == "equal":
        shown = f"\\underline{{{shown}}}"
    reduced = f" {escape(reduced_text(score.reduced))}" if score.reduced else ""
    return shown + reduced + (f"$^{{{','.join(markers)}}}$" if markers else "")


def latex_of_texts(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A table of plain texts with its title as the caption."""
    escaped = [[escape(text) for text in row] for row in rows]
    return _floating(f"{escape(title)}.", [escape(column) for column in columns], escaped, [escape(note)] * bool(note))


def _floating(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> str:
    """A ``table`` of escaped cells."""
    lines = [HEAD, r"\begin{table}", r"\centering", f"\\caption{{{caption}}}"]
    lines += [f"\\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule", f"{' & '.join(columns)} \\\\", r"\midrule"]
    lines += [f"{' & '.join(row)} \\\\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par\\smallskip\\footnotesize {note}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])
