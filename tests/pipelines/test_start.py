"""The command's entry point under Ctrl-C: exit code 130 and no traceback, while it loads and while it ends."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

STRIKE = "import signal; signal.raise_signal(signal.SIGINT)"
WHILE_LOADING = f"{STRIKE}"
TWICE = f"def main():\n    {STRIKE}\n"
AT_THE_END = f'import atexit\natexit.register(lambda: exec("{STRIKE}"))\ndef main():\n    raise SystemExit(130)\n'


@pytest.mark.parametrize("commands", [WHILE_LOADING, TWICE, AT_THE_END])
def test_a_signal_ends_the_command_with_130_and_no_traceback(commands: str):
    """``commands`` is the source of a stand-in for the module of the commands."""
    code = (
        "import importlib.abc, importlib.util, sys\n"
        "class Commands(importlib.abc.InspectLoader, importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        return importlib.util.spec_from_loader(name, self) if name == 'pipelines.cli' else None\n"
        f"    def get_source(self, name):\n        return {commands!r}\n"
        "sys.meta_path.insert(0, Commands())\n"
        "from pipelines.start import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def shell(line, **variables):
    """Run a line of bash in which ``$RD3`` is the command."""
    command = f"{shlex.quote(sys.executable)} -c 'from pipelines.start import main; main()'"
    return subprocess.run(
        ["bash", "-c", line.replace("$RD3", command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | variables,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")  # noqa: PTH110
@pytest.mark.parametrize("words", ["list networks", "list networks --json"])
def test_output_that_cannot_be_written_is_one_sentence(words):
    done = shell(f"$RD3 {words} > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("StoreError: The output cannot be written: No space left on device.\nFix: ")
    assert done.stderr.count("\n") == 2


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    done = shell("$RD3 list networks --json | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_closed_streams_are_opened_to_nowhere():
    assert shell("$RD3 list networks >&-").returncode == 0
    done = shell("$RD3 set show nothing 2>&- <&-")
    assert (done.returncode, done.stderr) == (2, "")


def test_children_inherit_the_opened_streams():
    child = (
        "import os, sys; print([os.fstat(n).st_rdev == os.stat(os.devnull).st_rdev for n in (0, 1)], file=sys.stderr)"
    )
    code = (
        "import subprocess, sys; from rd3.processes import open_standard_streams; open_standard_streams(); "
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    assert shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&-").stderr == "[True, True]\n"


def test_characters_that_the_terminal_lacks_are_replaced():
    done = shell("$RD3 set import --help", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Import an external synthetic set" in done.stdout and done.stdout.isascii()


@pytest.mark.skipif(sys.platform == "darwin", reason="its locale C is UTF-8")
def test_the_locale_c_is_a_terminal_that_lacks_characters():
    code = "from pipelines.terminal import output_errors\nwith output_errors(): print('\\u732b')"
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "?\n", "")


def test_a_file_that_hides_a_package_is_named(tmp_path):
    (tmp_path / "tracking.py").write_text("")
    inside, path = f"cd {shlex.quote(str(tmp_path))}; ", f"{tmp_path}:{Path(__file__).parents[2]}"
    done = shell(f"{inside}$RD3 list networks", PYTHONPATH=path)
    hidden = f"{tmp_path}/tracking.py hides RD3's package 'tracking'.\nFix: rename it"
    assert (done.returncode, done.stdout, done.stderr[: len(hidden)]) == (2, "", hidden)
    done = shell(f"{inside}{shlex.quote(sys.executable)} -c 'from pipelines import Workspace'", PYTHONPATH=path)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path}/tracking.py hides RD3's package")
