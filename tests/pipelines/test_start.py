"""The command's entry point under Ctrl-C: exit code 130 and no traceback, while it loads and while it ends."""

from __future__ import annotations

import subprocess
import sys

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
