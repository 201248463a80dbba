"""A lease: one driver per ledger, on a folder or on S3, with no server to ask.

The first holder writes ``leases/<name>.json`` if absent.  A holder that is dead is succeeded by whoever first writes
``leases/<name>.after-<its token>.json``, again if absent, so of many successors exactly one wins; the holder is the
end of that chain.  Life is shown in a document of its own (``.beat-<token>``), so that a driver that wakes from a long
sleep cannot overwrite its successor.  Clocks of machines that share a ledger must agree within half a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rd3.errors import StoreError
from tracking.ledger.object_store import ObjectStore

BEAT_S = 15.0
STALE_S = 60.0


def _started(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks: tells it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _runs_here(holder: dict[str, Any]) -> bool:
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder.get("started") is None or holder["started"] == _started(holder["pid"])


class Lease:
    """Held inside ``with``; :meth:`check` says whether it still is."""

    def __init__(self, objects: ObjectStore, name: str):
        self.objects = objects
        self.name = name
        self.token = uuid.uuid4().hex
        self._lost: dict[str, Any] | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def _document(self, suffix: str = "") -> str:
        return f"leases/{self.name}{suffix}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        raw = self.objects.get(name)
        return None if raw is None else json.loads(raw)

    def _chain(self) -> list[tuple[str, dict[str, Any]]]:
        """(document, holder) from the first holder to the one that holds now."""
        chain = []
        name = self._document()
        while (holder := self._read(name)) is not None:
            chain.append((name, holder))
            name = self._document(f".after-{holder['token']}")
        return chain

    def _holds(self) -> bool:
        chain = self._chain()
        return bool(chain) and bool(chain[-1][1]["token"] == self.token)

    def _alive(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname() and not _runs_here(holder):
            return False
        beat = self._read(self._document(f".beat-{holder['token']}")) or holder
        return bool(time.time() - beat["time"] < STALE_S)

    def _refuse(self, holder: dict[str, Any]) -> StoreError:
        since = datetime.fromtimestamp(holder["since"], UTC).isoformat(timespec="seconds")
        return StoreError(
            f"The ledger {self.objects.root} is in use by process {holder['pid']} on {holder['host']} since {since}.",
            "wait for it to end, or stop it",
        )

    def holder(self) -> dict[str, Any] | None:
        """``host``, ``pid`` and ``since`` of whoever holds it and lives."""
        chain = self._chain()
        return chain[-1][1] if chain and self._alive(chain[-1][1]) else None

    def __enter__(self) -> Lease:
        now = time.time()
        me = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": now,
            "time": now,
        }
        data = json.dumps(me).encode()
        while True:
            chain = self._chain()
            if chain and self._alive(chain[-1][1]):
                raise self._refuse(chain[-1][1])
            wanted = self._document(f".after-{chain[-1][1]['token']}") if chain else self._document()
            if self.objects.put(wanted, data, only_if_absent=True):
                if self._holds():
                    break
                self.objects.delete(wanted)  # the chain was released between reading and writing
        self._thread = threading.Thread(target=self._live, name=f"lease-{self.name}", daemon=True)
        self._thread.start()
        return self

    def _live(self) -> None:
        while not self._done.wait(BEAT_S):
            self.beat()

    def beat(self) -> None:
        """Show life, and notice a successor."""
        try:
            data = json.dumps({"time": time.time()}).encode()
            self.objects.put(self._document(f".beat-{self.token}"), data)
            chain = self._chain()
            if not chain or chain[-1][1]["token"] != self.token:
                self._lost = chain[-1][1] if chain else {}
        except StoreError:
            pass  # a server that is away for a moment: the next beat is soon, and work itself reports a lasting failure

    def check(self) -> None:
        """Raise :class:`StoreError` if somebody has taken over, which happens after a minute without a beat."""
        if self._lost:
            raise self._refuse(self._lost)
        if self._lost is not None:
            raise StoreError(f"The lease on the ledger {self.objects.root} was removed.", "run the command again")

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StoreError):  # a store that is gone frees the lease as well: its holder will be dead
            chain = self._chain()
            if chain and chain[-1][1]["token"] == self.token:
                for name, holder in chain:  # from the first: with that gone the lease is free, the rest is litter
                    self.objects.delete(name)
                    self.objects.delete(self._document(f".beat-{holder['token']}"))
