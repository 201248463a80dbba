"""Start or join Ray, on this machine or by address; devices of a cluster, and calls on its nodes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.cluster import local
from rd3.errors import RD3Error
from rd3.hardware import cores
from rd3.locks import exclusive, is_locked
from rd3.processes import is_running

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_MAX_PENDING_TRIALS_PG": "1024",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
"""The searcher alone limits the number of running trials (Tune allows a custom one a single pending trial by default);
Tune writes no result files, prints no tables and leaves signals to the driver; Ray does not change
``CUDA_VISIBLE_DEVICES`` for tasks without a GPU."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The HTTP/2 connection preface: a fixed text and an empty SETTINGS frame.  A server responds with its own."""
_SETTINGS = 4
"""Type of an HTTP/2 SETTINGS frame."""
_CLIENT = "ray://"
_WAIT_S = 5.0
"""Timeout of the connection to a server, in seconds."""


def check_address(address: str) -> None:
    """Raise :class:`RD3Error` unless a server at ``address`` (``HOST:PORT``) speaks HTTP/2, as Ray does.

    ``auto`` and other values that Ray resolves itself are not checked.  Ray Client's ``ray://`` is refused: over it,
    Ray Tune runs in a task on the cluster, and the driver is an object of this process.
    """
    if address.startswith(_CLIENT):
        head = address.removeprefix(_CLIENT).rpartition(":")[0] or "HEAD"
        raise RD3Error(
            f"{address} is an address of Ray Client, which cannot run grids and sweeps.",
            "give --address auto on a node of the cluster, or from elsewhere: "
            f"rd3 submit GRID --address http://{head}:8265",
        )
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT_S) as connection:
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: not a host name, or not a number
        reason = getattr(error, "strerror", None) or error
        raise RD3Error(
            f"The Ray cluster at {address} does not respond: {reason}.", "start it, or set --address to its head"
        ) from None
    if answer[3:4] != bytes([_SETTINGS]):
        raise RD3Error(
            f"The server at {address} is not the head of a Ray cluster.",
            "use the port of the head (default: 6379), not that of its dashboard",
        )


def mismatch(text: str) -> tuple[str, str] | None:
    """The versions that the cluster and the process that joins it run, if Ray says in this text that they differ."""
    versions = [f"Ray {ray} and Python {python}" for ray, python in re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)]
    return (versions[0], versions[1]) if len(versions) == 2 else None


def not_joined(address: str, error: Exception) -> RD3Error:
    """Translate Ray's exception on joining the cluster at ``address``."""
    from ray.exceptions import AuthenticationError

    text = str(error)
    if versions := mismatch(text):
        theirs, ours = versions
        return RD3Error(
            f"The Ray cluster at {address} runs {theirs}, this machine {ours}.",
            "install the same versions on both; Ray requires them to be equal",
        )
    if isinstance(error, AuthenticationError):
        sentence = text.split(". ")[0].rstrip(".")
        return RD3Error(f"No usable token for the Ray cluster at {address}: {sentence}.", _TOKEN_FIX)
    if "Failed to connect to Ray cluster" in text:  # although the server responded
        return RD3Error(f"The Ray cluster at {address} refused the connection.", _TOKEN_FIX)
    return RD3Error(
        f"Cannot join the Ray cluster at {address}: {_first_line(error)}", "check the address with `ray status`"
    )


_TOKEN_FIX = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"


def _first_line(error: Exception) -> str:
    """The first line of an error message, which may be a page long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def error_line(error: Exception) -> str:
    """The line that states a Ray error, which may be a traceback."""
    return last_line(str(error), type(error).__name__)


def last_line(text: str, otherwise: str) -> str:
    """The last line with a word in it, without a full stop: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1].rstrip(".") if lines else otherwise


_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LONGEST_ROOT = 27
"""Characters of a temporary folder with which the paths of Ray's sockets stay within the 107 that Linux allows."""
_FREE_BYTES = 64 * 2**20


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A temporary folder for Ray that only this user can enter, although Ray opens its own to everybody.

    In ``$TMPDIR``, or in ``/tmp`` if that path is too long, full or not writable.  Folders of killed processes are
    deleted; the lock in a folder is that of its process, whose ID another container does not have.
    """
    roots = dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp")))
    reasons = {root: _unsuitable(root) for root in roots}
    root = next((root for root in roots if not reasons[root]), None)
    if root is None:
        why = ", ".join(f"{root} {reason}" for root, reason in reasons.items())
        raise RD3Error(f"Ray cannot use any temporary folder: {why}.", "free space, or set TMPDIR to a short path")
    for left in root.glob("rd3-[0-9]*"):
        named = re.fullmatch(r"rd3-(\d+)-\d+", left.name)  # other folders may begin alike
        with contextlib.suppress(OSError):  # it is another user's
            if named and not is_running(int(named[1])) and not is_locked(left / "lock"):
                shutil.rmtree(left, ignore_errors=True)
    folder = _private_folder(root)
    try:
        with exclusive(folder / "lock"):
            yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_token(folder: Path) -> Iterator[None]:
    """A token for a cluster of this process, unless the user has set one.

    Ray would keep one in HOME, in a file that every user of the machine can read.  Afterwards the process is as before,
    and can join another cluster; a Ray that has died keeps its token, without which its threads abort the process.
    """
    if _TOKEN in os.environ or _TOKEN_PATH in os.environ:
        yield
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # of a compiled module

    path, loader, mode = folder / "token", AuthenticationTokenLoader.instance(), os.environ.get(_MODE)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ[_TOKEN_PATH] = str(path)
    loader.reset_cache()
    try:
        yield
    finally:
        if not local.is_lost():
            os.environ.pop(_TOKEN_PATH, None)
            if mode is None:  # which Ray has set then
                os.environ.pop(_MODE, None)
                Config.initialize("")  # reads the environment again
            loader.reset_cache()


def _private_folder(root: Path) -> Path:
    for number in itertools.count():
        folder = root / f"rd3-{os.getpid()}-{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError


def _unsuitable(root: Path) -> str:
    """Why Ray cannot use this folder for temporary files; empty if it can."""
    if len(str(root)) > _LONGEST_ROOT:
        return f"is longer than {_LONGEST_ROOT} characters"
    if not os.access(root, os.W_OK):
        return "is not writable"
    return "is full" if shutil.disk_usage(root).free < _FREE_BYTES else ""


def _start(explain: Callable[[Exception], RD3Error], **options: Any) -> None:
    """Start or join Ray, with three attempts: a node has 30 s to start, which a busy machine may exceed."""
    import ray

    for last in (False, False, True):
        before = local.children("self")
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
            return
        except Exception as error:  # Ray raises a bare Exception for a start that times out
            ray.shutdown()
            for process in local.children("self") - before:  # shutdown ignores a node that did not start
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if last or "timed out during startup" not in str(error):
                raise explain(error) from None


_START_FIXES = (
    (r"AF_UNIX|path (?:is )?too long|name too long", "set TMPDIR to a short path, such as /tmp"),
    (r"No space left|disk is full|quota exceeded", "free space in the temporary folder, or set TMPDIR to another disk"),
    (
        r"/dev/shm|shared memory|object[_ ]store[_ ]memory|[Cc]annot allocate memory|MemoryError|out of memory",
        "free memory, or enlarge /dev/shm (in a container: --shm-size)",
    ),
    (
        r"[Aa]ddress already in use|[Pp]orts? .*(?:in use|occupied|not available)|Failed to bind|conflict",
        "end the process at that port (`ray stop` ends an old Ray)",
    ),
    (
        r"can't start new thread|pthread_create|Resource temporarily unavailable|[Tt]oo many open files",
        "raise the limits of processes and open files (`ulimit -u`, `ulimit -n`)",
    ),
    (
        r"[Pp]ermission denied|Read-only file system|No such file or directory",
        "set TMPDIR and HOME to folders that can be written",
    ),
    (r"[Pp]roxy", "add 127.0.0.1 and the name of this machine to NO_PROXY"),
    (r"[Nn]ame or service not known|[Nn]ame resolution|gaierror", "add the name of this machine to /etc/hosts"),
)
"""Patterns in the texts of Ray's errors on starting, and what helps."""
_START_BUSY = "try again when the machine is less busy, or run without Ray: `rd3 run GRID --local`"


def _not_started(error: Exception) -> RD3Error:
    fix = next((fix for pattern, fix in _START_FIXES if re.search(pattern, str(error))), _START_BUSY)
    return RD3Error(f"Cannot start Ray on this machine: {_first_line(error)}", fix)


@contextlib.contextmanager
def ray_cluster(address: str | None = None, log: Path | None = None) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at ``address``; an initialised Ray is used and left running.

    Messages of a Ray on this machine go to ``log``, if given.  Raises :class:`RayDied` in a process whose Ray has died.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    import ray

    local.check_not_lost()
    if ray.is_initialized():
        if ray.util.client.ray.is_connected():
            raise RD3Error(
                "This process is connected to a cluster by Ray Client, which cannot run grids and sweeps.",
                "call ray.shutdown() first to run on this machine, or use rd3 submit GRID --address http://HEAD:8265",
            )
        yield
        return
    with contextlib.ExitStack() as stack:
        if address:
            # Ray resolves "auto" by this variable first
            check_address(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            _start(partial(not_joined, address), address=address)
        else:
            folder = stack.enter_context(ray_folder())
            stack.enter_context(_own_token(folder.parent))
            stack.enter_context(local.stderr_apart(log))
            _start(_not_started, address="local", num_cpus=cores(), include_dashboard=False, _temp_dir=str(folder))
        try:
            yield
        finally:
            _stop()


def _stop() -> None:
    """Leave the cluster, or stop Ray on this machine."""
    import ray

    dead = local.dead_service()
    if dead:  # without its GCS or raylet, Ray's shutdown blocks for minutes and then ends the process
        local.abandon(dead)
        return
    with warnings.catch_warnings():
        # Ray leaves its process handles to the garbage collector, which would warn about them later.
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()
        gc.collect()


def on_node(node: str, task: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on the node of the cluster with this ID; returns Ray's reference to its result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(task).options(scheduling_strategy=there).remote(*arguments)


def cluster_devices() -> tuple[float, float]:
    """(CPUs, GPUs) of the whole cluster at this moment."""
    import ray

    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)
