"""Text from outside is shown as it is, on every way to a terminal."""

from __future__ import annotations

import io

import pytest
from rich.progress import Progress

from pipelines.commands._show import exit_on_error, show_reasons, show_table
from pipelines.terminal import PlainColumn, PlainConsole, printable
from rd3.errors import BadValue

FOREIGN = "/data/[/red]/[bold]x[/]/:smile:/[link=a]"


def test_markup_and_emoji_codes_are_text():
    out = io.StringIO()
    PlainConsole(file=out).print(FOREIGN, soft_wrap=True)
    assert out.getvalue() == FOREIGN + "\n"


def test_markup_is_text_in_tables_reasons_and_errors(capsys):
    show_table([{FOREIGN: FOREIGN}])
    show_reasons([("failed", FOREIGN, FOREIGN)])
    assert capsys.readouterr().out.count(FOREIGN) == 4
    with pytest.raises(SystemExit), exit_on_error():
        raise BadValue(FOREIGN, FOREIGN)
    assert capsys.readouterr().err == f"BadValue: {FOREIGN}\nFix: {FOREIGN}\n"


def test_markup_is_text_beside_a_progress_bar():
    out = io.StringIO()
    columns = (PlainColumn("{task.description}"), PlainColumn("{task.fields[note]}"))
    with Progress(*columns, console=PlainConsole(file=out, force_terminal=True, width=200)) as bar:
        bar.add_task(FOREIGN, note=FOREIGN)
    assert f"{FOREIGN} {FOREIGN}" in out.getvalue()


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\rc\x07\x9b1m\td\ne") == "a\ufffd[2Jb\ufffdc\ufffd\ufffd1m\td\ne"
    assert printable("x\u202egnp.tp") == "x\ufffdgnp.tp", "the name would be shown backwards"
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, color_system="standard")
    console.print("a\x1b[2Jb", style="red")
    assert out.getvalue() == "\x1b[31ma\ufffd[2Jb\x1b[0m\n"
