"""The Ray that this process has started on this machine: its messages, whether its services run, its end if not.

Without its control service (GCS) or its raylet, calls into Ray block for minutes, print stack traces and then end the
process.  A driver must not wait in them (:func:`watched`), nor call Ray's shutdown afterwards (:func:`abandon`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from rd3.errors import RD3Error

T = TypeVar("T")

_SERVICES = {"raylet": "its raylet", "gcs_server": "its control service (gcs_server)"}
"""Ray's names of the processes without which it does not work."""
_WATCH_EVERY_S = 0.2
_LOG_LINES = 100
_STDERR = 2
_lost: list[str] = []
"""At most one item: the service whose death ended the Ray of this process."""
_log: list[Path] = []
"""Where the running Ray writes its messages."""


def ray_log(home: Path) -> Path:
    """File for the messages of a Ray that a driver starts."""
    return home / "logs" / "ray.log"


class RayDied(RD3Error):
    """A service of the Ray on this machine has died."""

    exit_code = 3


def _processes() -> dict[str, list[Any]]:
    """The processes of the Ray that this process has started, by Ray's names for them."""
    from ray._private import worker

    node: Any = worker._global_node
    started = node.all_processes if node else {}
    return {name: [one.process for one in same] for name, same in started.items()}


def dead_service() -> str | None:
    """The service of the Ray that this process has started which has died; None if all run, or none was started."""
    processes = _processes()
    dead = (name for name in _SERVICES if any(one.poll() is not None for one in processes.get(name, [])))
    return next(dead, None)


def watched(work: Callable[[], T]) -> T:
    """Call ``work``, which uses Ray, and return its result; raises :class:`RayDied` once a service of Ray has died.

    ``work`` runs in a thread of its own, which is left behind in this case.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="ray-calls", daemon=True)
    thread.start()
    while thread.is_alive() and not dead_service():
        thread.join(_WATCH_EVERY_S)
    dead = dead_service()
    if dead and (thread.is_alive() or isinstance(result.exception(), Exception)):
        raise _died(dead)
    return result.result()


def is_lost() -> bool:
    """Whether a service of this process's Ray has died; Ray's threads still run then."""
    return bool(_lost)


def check_not_lost() -> None:
    """Raise :class:`RayDied` if the Ray of this process has died: no other one can be started in it."""
    if _lost:
        raise RayDied(
            f"The Ray of this Python process has stopped working: {_SERVICES.get(_lost[0], _lost[0])} has died.",
            "restart Python and run the same again, which resumes",
        )


def _died(service: str) -> RayDied:
    log = next((f"; its last messages are in {path}" for path in _log), "")
    return RayDied(
        f"Ray on this machine has stopped working: {_SERVICES[service]} has died{log}.",
        "run the same command again, which resumes; if it was killed for lack of memory, with fewer trials at a time",
    )


@contextlib.contextmanager
def stderr_apart(log: Path | None) -> Iterator[None]:
    """Within the block, what Ray prints and libraries write to the process's standard error goes to ``log``; Python's
    standard error goes to where it went before.

    The file is replaced, and deleted if it stays empty.  Without ``log``, or if Python's standard error is not that of
    the process, nothing changes.
    """
    own = False  # whether Python's standard error is that of the process
    with contextlib.suppress(OSError, ValueError, AttributeError):
        own = sys.stderr.fileno() == _STDERR
    if log is None or not own:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    before, terminal = sys.stderr, os.dup(_STDERR)
    log.unlink(missing_ok=True)
    with log.open("ab") as file:  # others append to it meanwhile
        os.dup2(file.fileno(), _STDERR)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")
    _log.append(log)
    try:
        with _printing_to_stderr():
            yield
    finally:
        _log.remove(log)
        if not _lost:  # a Ray that is lost goes on writing
            sys.stderr.flush()
            written = os.fstat(_STDERR)
            os.dup2(terminal, _STDERR)
            sys.stderr.close()
            sys.stderr = before
            with contextlib.suppress(FileNotFoundError):  # another driver with this home may have replaced the file
                there = log.stat()
                if not there.st_size and os.path.samestat(there, written):
                    log.unlink()


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Within the block, Ray's messages about its own processes go to the process's standard error.

    Ray prints them to standard output from a thread, with the last lines of the log of the process.  The output of
    workers is not among them, as Ray is started without ``log_to_driver``.
    """
    from ray._private import worker

    def write(data: dict[str, Any], *_options: Any, **_named: Any) -> None:
        lines = data.get("lines", "")
        text = lines if isinstance(lines, str) else "\n".join(lines)
        os.write(_STDERR, f"{text}\n".encode(errors="backslashreplace"))

    before = worker.print_to_stdstream
    worker.print_to_stdstream = write
    try:
        yield
    finally:
        if not _lost:
            worker.print_to_stdstream = before


def abandon(service: str) -> None:
    """Kill what is left of the Ray of this process after the death of a service, without asking Ray."""
    import ray
    from ray._private import worker

    _lost.append(service)
    atexit.unregister(worker.shutdown)
    atexit.unregister(ray.shutdown)
    processes = [one for same in _processes().values() for one in same]
    workers = [child for one in processes for child in children(one.pid)]
    for one in processes:
        one.kill()  # which does nothing to one that has ended
    for child in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for one in processes:
        one.wait()
    for log in _log:
        _append_logs(log, service)


def _append_logs(log: Path, service: str) -> None:
    """Append the last lines of the logs of a service, which go away with Ray's folder."""
    from ray._private import worker

    node: Any = worker._global_node
    with log.open("a", errors="backslashreplace") as file:
        for path in sorted(Path(node.get_logs_dir_path()).glob(f"{service}*.*")):
            last = path.read_text(errors="backslashreplace").splitlines()[-_LOG_LINES:]
            file.writelines(f"{path.name}: {line}\n" for line in last)


def children(process: int | str) -> set[int]:
    """IDs of the child processes of a process, or of ``self`` (Linux; empty elsewhere)."""
    found: set[int] = set()
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, listed.read_text().split()))
    return found


def exit_if_lost(code: str | int | None) -> None:
    """End this process at once if its Ray is lost: Ray's threads would block its ordinary end, or abort it."""
    if _lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
