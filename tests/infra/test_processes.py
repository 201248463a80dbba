"""Processes of the stack are found again by their records, and those of others never."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import pytest

# The stack's processes are meant to outlive the command that starts them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
STACK = Path(__file__).parents[2] / "infra" / "stack"


@pytest.fixture
def orphaned(tmp_path):
    """A part whose leader has ended and left a child in its session."""
    spec = importlib.util.spec_from_file_location("stack_processes", STACK / "processes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    part = module.Processes(tmp_path / "part.json")
    part.start(["sh", "-c", "sleep 600 &"], os.environ, tmp_path / "log", tmp_path)
    while part.alive():
        time.sleep(0.01)
    yield part
    part.kill()


def test_a_record_from_before_a_reboot_is_of_nobody(orphaned):
    """A session of today may have the number of a leader of then."""
    recorded = json.loads(orphaned.record.read_text())
    assert len(orphaned.members()) == 1
    orphaned.record.write_text(json.dumps([[pid, at, "an earlier boot"] for pid, at, _boot in recorded]))
    assert orphaned.members() == set()
    orphaned.record.write_text(json.dumps(recorded))


def test_what_is_left_without_a_leader_is_ended_at_once(orphaned):
    [left] = orphaned.members()
    begun = time.monotonic()
    orphaned.end(signal.SIGTERM, 600)
    assert time.monotonic() - begun < 300
    assert not orphaned.members()
    assert not Path(f"/proc/{left}").exists() or "State:\tZ" in Path(f"/proc/{left}/status").read_text()
