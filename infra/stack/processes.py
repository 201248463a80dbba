"""Processes of one part of the stack, such as PostgreSQL or a node of Ray.

They are started in sessions of their own, found again by later commands, and all of them ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple


class _Stat(NamedTuple):
    parent: int
    session: int
    started: int


def _stat(pid: int) -> _Stat | None:
    """What the kernel says of a process; None if it has ended, also if it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # Fields after the name: 0 state, 1 parent, 3 session, 19 start in clock ticks since the machine started (proc(5)).
    return None if fields[0] == "Z" else _Stat(int(fields[1]), int(fields[3]), int(fields[19]))


def _boot() -> str:
    """An identifier of this start of the machine, since which pids and start times are counted."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _running() -> dict[int, _Stat]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: stat for pid in pids if (stat := _stat(pid)) is not None}


class Processes:
    """The processes of one part; ``record`` keeps (pid, start time, :func:`_boot`) of those started, the leaders."""

    def __init__(self, record: Path):
        self.record = record

    def start(self, command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> None:
        """Start one more process, the leader of a session; its output is appended to ``log``."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        stat = _stat(process.pid)
        leaders = [*self._leaders(), (process.pid, stat.started if stat else 0)]
        self.record.write_text(json.dumps([(*leader, _boot()) for leader in leaders]))

    def _leaders(self) -> list[tuple[int, int]]:
        """(pid, start time) of the leaders; those from before a reboot are gone, and others have their pids."""
        recorded = json.loads(self.record.read_text()) if self.record.exists() else []
        return [(pid, at) for pid, at, boot in recorded if boot == _boot()]

    def alive(self) -> bool:
        """Whether every leader lives."""
        leaders, running = self._leaders(), _running()
        return bool(leaders) and all(pid in running and running[pid].started == at for pid, at in leaders)

    def members(self) -> set[int]:
        """The leaders, their sessions, and all that descends from these, also where a leader is gone."""
        running = _running()
        # A pid that another process has by now is not ours.
        ours = {pid for pid, at in self._leaders() if pid not in running or running[pid].started == at}
        found = {pid for pid, stat in running.items() if pid in ours or stat.session in ours}
        while more := {pid for pid, stat in running.items() if stat.parent in found} - found:
            found |= more
        return found

    def end(self, how: signal.Signals, give_up_after_s: float = 20.0) -> None:
        """Send the signal ``how`` to the leaders, wait up to ``give_up_after_s`` seconds, and kill what is left."""
        left = self.members()
        asked = left & {pid for pid, _at in self._leaders()}
        for pid in asked:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, how)
        # If no leader is left to pass the signal on, the others are killed at once.
        deadline = time.monotonic() + (give_up_after_s if asked else 0)
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = self._left_of(left)
        self.kill(left)

    def kill(self, also: Set[int] = frozenset()) -> None:
        """SIGKILL to all at once, as a crash would; what they have started meanwhile as well."""
        left, foreign = self.members() | also, set[int]()
        while left:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it has just ended
                except PermissionError:
                    foreign.add(pid)  # it runs as another user
            time.sleep(0.05)
            left = self._left_of(left) - foreign
        self.record.unlink(missing_ok=True)

    def _left_of(self, pids: Set[int]) -> set[int]:
        """Those that still run, and what belongs to the part by now."""
        return {pid for pid in pids if _stat(pid) is not None} | self.members()
