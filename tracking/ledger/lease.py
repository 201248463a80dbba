"""A lease that allows one driver per ledger, in a folder or on S3, without a lock server.

The first holder writes ``leases/<name>.json`` if absent.  A dead holder is succeeded by the first process that writes
``leases/<name>.after-<its token>.json``, again if absent, so that exactly one of several successors wins; the current
holder is the end of that chain.  The heartbeat is a separate object (``.beat-<token>``), so that a suspended driver
that resumes cannot overwrite its successor.  Clocks of machines that share a ledger must agree within 30 seconds; a
holder whose clock was more than a minute ahead is alive if another heartbeat follows.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from rd3.errors import DataCorrupt, LedgerInUse, StoreError
from rd3.processes import is_suspended, started_at, still_runs
from tracking.ledger.object_store import ObjectStore, json_with, read_as

BEAT_S = 15.0
"""Seconds between heartbeats."""
STALE_S = 60.0
"""Seconds without a heartbeat after which a holder counts as dead."""

AHEAD_S = 60.0
"""Seconds from which on a heartbeat in the future is of a clock that is, or was, wrong."""


def current_user() -> str:
    """Name of the user of this process, or the number of one without a name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


class Lease:
    """Held inside ``with``; :meth:`check` raises once it is lost.

    A holder is a dict with ``token``, ``host``, ``user``, ``work``, ``pid``, ``started`` (of its process, in clock
    ticks since boot), ``since`` and ``time`` (Unix time).
    """

    def __init__(self, objects: ObjectStore, name: str, work: str = ""):
        self.objects = objects
        self.name = name
        self.work = work
        self.token = uuid.uuid4().hex
        self._lost: dict[str, Any] | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name=f"lease-{name}", daemon=True)

    def _object_name(self, suffix: str = "") -> str:
        return f"leases/{self.name}{suffix}.json"

    def _read(self, name: str, *members: str) -> dict[str, Any] | None:
        fix = "make sure that no driver runs, then delete that file"
        return read_as(self.objects, name, json_with("time", *members), "Lease", fix)

    def _chain(self) -> list[tuple[str, dict[str, Any]]]:
        """(object name, holder) from the first holder to the current one."""
        chain = []
        name = self._object_name()
        while (holder := self._read(name, "token", "host", "pid", "since")) is not None:
            chain.append((name, holder))
            name = self._object_name(f".after-{holder['token']}")
        return chain

    def _current(self) -> dict[str, Any]:
        """The last holder of the chain, dead or alive; empty if there is none."""
        return next((holder for _name, holder in reversed(self._chain())), {})

    def _is_last(self, chain: list[tuple[str, dict[str, Any]]]) -> bool:
        """Whether this lease is the last holder of a chain, which is the current one."""
        return bool(chain and chain[-1][1]["token"] == self.token)

    def _last_beat(self, holder: dict[str, Any]) -> float:
        """Time of the last heartbeat by the holder's clock (Unix time)."""
        return float((self._read(self._object_name(f".beat-{holder['token']}")) or holder)["time"])

    def _beat_age_s(self, holder: dict[str, Any]) -> float:
        return time.time() - self._last_beat(holder)

    def _alive(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname() and not still_runs(holder["pid"], holder.get("started")):
            return False
        age = self._beat_age_s(holder)
        return age < STALE_S and (age > -AHEAD_S or self._writes_another_beat(holder))

    def _writes_another_beat(self, holder: dict[str, Any]) -> bool:
        """Whether a heartbeat follows within two periods: the one of a clock that was ahead has no age."""
        last = self._last_beat(holder)
        end = time.monotonic() + 2 * BEAT_S
        while time.monotonic() < end:
            time.sleep(BEAT_S / 15)
            if self._last_beat(holder) != last:
                return True
        return False

    def _refuse(self, holder: dict[str, Any]) -> LedgerInUse:
        since = datetime.fromtimestamp(holder["since"], UTC).isoformat(timespec="seconds")
        facts = [f"user {holder['user']}" if holder.get("user") else "", str(holder.get("work", ""))]
        age = self._beat_age_s(holder)
        facts.append(
            f"its clock is {-age:.0f} s ahead" if age < -AHEAD_S else f"last heartbeat {max(0.0, age):.0f} s ago"
        )
        if holder["host"] == socket.gethostname() and is_suspended(holder["pid"]):
            facts.append(f"suspended: kill -CONT {holder['pid']} continues it")
        return LedgerInUse(
            f"The ledger {self.objects.root} is in use by process {holder['pid']} on {holder['host']} since {since} "
            f"({', '.join(filter(None, facts))}).",
            f"wait for it to end, or stop it; a driver without a heartbeat for {STALE_S:.0f} s is succeeded",
        )

    def refuse_if_held(self) -> None:
        """Raise :class:`LedgerInUse` if another process holds the lease; writes nothing."""
        if holder := self.holder():
            raise self._refuse(holder)

    def holder(self) -> dict[str, Any] | None:
        """The live holder, or None."""
        holder = self._current()
        return holder if holder and self._alive(holder) else None

    def __enter__(self) -> Lease:
        now = time.time()
        me = {
            "token": self.token,
            "host": socket.gethostname(),
            "user": current_user(),
            "work": self.work,
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "since": now,
            "time": now,
        }
        data = json.dumps(me).encode()
        chain = self._chain()
        while not self._is_last(chain):  # what counts is what can be read: a store may lose an answer, or let two write
            holder = chain[-1][1] if chain else {}
            if holder and self._alive(holder):
                raise self._refuse(holder)
            claim = self._object_name(f".after-{holder['token']}" if holder else "")
            written = self.objects.put(claim, data, only_if_absent=True)
            chain = self._chain()
            if written and holder and claim not in dict(chain):  # the chain was released between reading and writing
                self.objects.delete(claim)
        self._thread.start()
        return self

    def _keep_alive(self) -> None:
        while not self._done.wait(BEAT_S):
            self.beat()

    def beat(self) -> None:
        """Write a heartbeat, and check whether another process has taken over."""
        try:
            data = json.dumps({"time": time.time()}).encode()
            self.objects.put(self._object_name(f".beat-{self.token}"), data)
            holder = self._current()
            if holder.get("token") != self.token:
                self._lost = holder
        except (StoreError, DataCorrupt):
            pass  # a short outage: the next heartbeat follows soon, and the work itself reports a lasting failure

    def check(self) -> None:
        """Raise :class:`StoreError` if another process has taken over, as it may after a minute without a heartbeat."""
        if self._lost:
            raise self._refuse(self._lost)
        if self._lost is not None:
            raise StoreError(f"The lease on the ledger {self.objects.root} was removed.", "run the command again")

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()
        # An unreachable store also frees the lease: no heartbeat follows.
        with contextlib.suppress(StoreError, DataCorrupt):
            chain = self._chain()
            if self._is_last(chain):
                for name, holder in chain:  # without the first object the lease is free; the others are leftovers
                    self.objects.delete(name)
                    self.objects.delete(self._object_name(f".beat-{holder['token']}"))
