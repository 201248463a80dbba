"""One driver per ledger: leases are refused, inherited from the dead, and given back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from rd3.errors import DataCorrupt, StoreError
from tracking.ledger.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path))


@pytest.fixture(scope="module")
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave(ledger: Ledger, **holder: Any) -> None:
    """What a driver that did not say goodbye leaves behind."""
    now = time.time()
    left = {"token": "t0", "host": socket.gethostname(), "pid": os.getpid(), "started": None, "since": now, "time": now}
    ledger.objects.put("leases/driver.json", json.dumps(left | holder).encode())


def test_a_second_driver_is_told_who_is_there(ledger: Ledger) -> None:
    with ledger.lease() as held:
        held.check()
        with (
            pytest.raises(
                StoreError, match=rf"in use by process {os.getpid()} on {socket.gethostname()} since 20\d\d-.*Fix: wait"
            ),
            ledger.lease(),
        ):
            pass
        with ledger.lease("other"):
            pass
    with ledger.lease():
        pass
    assert list(ledger.objects.names("leases/")) == []


def test_a_suspended_driver_is_named_as_such(ledger: Ledger) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        leave(ledger, pid=process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
        try:
            with pytest.raises(StoreError, match=f"suspended: kill -CONT {process.pid} continues it"), ledger.lease():
                pass
        finally:
            process.kill()


def test_a_driver_in_another_process_is_refused(ledger: Ledger) -> None:
    code = (
        "import sys\nfrom tracking.ledger.ledger import Ledger\nfrom rd3.errors import DataCorrupt, StoreError\n"
        "try:\n    Ledger(sys.argv[1]).lease().__enter__()\nexcept StoreError as error:\n    print(error.message)"
    )
    with ledger.lease():
        said = subprocess.run([sys.executable, "-c", code, ledger.root], capture_output=True, text=True, check=True)
    assert f"in use by process {os.getpid()} on " in said.stdout


def test_the_dead_of_this_machine_are_succeeded_at_once(ledger: Ledger, dead_pid: int) -> None:
    leave(ledger, pid=dead_pid)
    with ledger.lease() as held:
        held.beat()
        held.check()
    assert list(ledger.objects.names("leases/")) == []


def test_a_later_process_with_the_same_number_is_not_the_holder(ledger: Ledger) -> None:
    leave(ledger, started="1")
    with ledger.lease():
        pass


def test_another_machine_is_believed_for_a_minute(ledger: Ledger) -> None:
    leave(ledger, host="elsewhere", time=time.time() - 50)
    with pytest.raises(StoreError, match="on elsewhere since"), ledger.lease():
        pass
    leave(ledger, host="elsewhere", time=time.time() - 70)
    ledger.objects.put("leases/driver.beat-t0.json", json.dumps({"time": time.time() - 20}).encode())
    with pytest.raises(StoreError, match="on elsewhere since"), ledger.lease():
        pass
    ledger.objects.put("leases/driver.beat-t0.json", json.dumps({"time": time.time() - 70}).encode())
    with ledger.lease():
        pass


def test_a_machine_whose_clock_was_ahead_is_succeeded_unless_it_still_writes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was believed until its time had come, a day later."""
    monkeypatch.setattr("tracking.ledger.lease.BEAT_S", 0.15)
    tomorrow = time.time() + 86400

    def beat(moment: float) -> None:
        ledger.objects.put("leases/driver.beat-t0.json", json.dumps({"time": moment}).encode())

    leave(ledger, host="elsewhere", since=tomorrow, time=tomorrow)
    beat(tomorrow + 15)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: [(time.sleep(0.02), beat(tomorrow + 30 + step)) for step in range(10)])
        with pytest.raises(StoreError, match=r"on elsewhere since .*its clock is 864\d\d s ahead"), ledger.lease():
            pass
    with ledger.lease() as held:
        held.check()


def test_a_driver_that_was_succeeded_learns_of_it_and_leaves_its_successor_alone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = ledger.lease()
    sleeper.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr("tracking.ledger.lease.STALE_S", -1.0)
        successor = ledger.lease()
        successor.__enter__()
    sleeper.beat()
    with pytest.raises(StoreError, match="in use by process"):
        sleeper.check()
    sleeper.__exit__()
    successor.beat()
    successor.check()
    with pytest.raises(StoreError, match="in use by process"), ledger.lease():
        pass
    successor.__exit__()
    assert list(ledger.objects.names("leases/")) == []


@pytest.mark.parametrize("dead_holder", [False, True])
def test_of_many_at_the_same_moment_one_gets_it(ledger: Ledger, dead_pid: int, dead_holder: bool) -> None:
    for _round in range(5):
        if dead_holder:
            leave(ledger, pid=dead_pid)
        start = Barrier(8)

        def take(_number: int, start: Barrier = start) -> Any:
            lease = ledger.lease()
            start.wait()
            try:
                return lease.__enter__()
            except StoreError:
                return None

        with ThreadPoolExecutor(8) as pool:
            held = [lease for lease in pool.map(take, range(8)) if lease is not None]
        assert len(held) == 1
        held[0].__exit__()
        assert list(ledger.objects.names("leases/")) == []


def test_of_two_whose_writes_both_succeed_the_later_one_keeps_the_lease(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swift checks a condition before it writes; the one who lost deleted the object of the one who won."""
    put = ledger.objects.put

    def overwritten(name: str, data: bytes, only_if_absent: bool = False) -> bool:
        done = put(name, data, only_if_absent)
        if only_if_absent:
            leave(ledger, token="later")
        return done

    monkeypatch.setattr(ledger.objects, "put", overwritten)
    with pytest.raises(StoreError, match="in use by process"), ledger.lease():
        pass
    held = ledger.objects.get("leases/driver.json")
    assert held is not None and json.loads(held)["token"] == "later"


def test_a_lease_whose_answer_was_lost_is_held(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 sends a request again, which then meets the object of the first time; it was refused as of another."""
    put = ledger.objects.put

    def twice(name: str, data: bytes, only_if_absent: bool = False) -> bool:
        put(name, data, only_if_absent)
        return put(name, data, only_if_absent)

    monkeypatch.setattr(ledger.objects, "put", twice)
    with ledger.lease() as held:
        held.beat()
        held.check()
    assert list(ledger.objects.names("leases/")) == []


@pytest.mark.parametrize("damaged", [b"{", b"{}", b"[]", b"null"])
def test_a_damaged_lease_is_said(ledger: Ledger, damaged: bytes) -> None:
    ledger.objects.put("leases/driver.json", damaged)
    with pytest.raises(DataCorrupt, match=r"Lease .*/leases/driver.json cannot be read\. Fix: make sure that no"):
        ledger.lease().refuse_if_held()
