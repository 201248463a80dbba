"""Submit a grid to a Ray cluster through the Jobs API: a small working directory and a command whose log is followed.

The working directory contains RD3's code and the grid file, so that driver and workers run the submitter's code; the
nodes provide Python, Ray and the other packages.  No secrets are sent: nodes have credentials in their environment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import platform
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.cluster.ray import last_line, mismatch
from pipelines.settings import Session
from rd3.errors import BadValue, RD3Error, StoreError
from tracking.ledger.faults import has_password, is_loopback

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("rd3", "tracking", "pipelines")
LIMIT_BYTES = 20 * 2**20
"""Maximum size of the working directory; Ray's own limit is 500 MiB, sent to every node."""
STOP_WAIT_S = 60
"""Time for a stopped job to end its MLflow runs before Ray kills it (Ray's default: 3 s)."""
PROBE = "python -c 'import platform, ray; print(\"rd3-probe\", platform.python_version(), ray.__version__)'"
"""Runs on the head before anything is sent."""
_VERBOSE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_KILL_WITHIN_S = 10.0
"""Time that Ray has to kill a job after :data:`STOP_WAIT_S`."""
_PROBE_WITHIN_S = 120.0
_POLL_EVERY_S = 1.0


@dataclass(frozen=True)
class Submission:
    """A grid to submit, with the options of ``rd3 run``, addresses, and the datasets that the driver needs."""

    name: str
    grid: str
    """Name of a built-in grid, of the file in the working directory, or of the demonstration size of that file."""
    file: Path | None = None
    options: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    pull: list[str] = field(default_factory=list)
    """Datasets that the head node pulls from the tracking server if it does not have them."""
    presets: dict[str, bytes] = field(default_factory=dict)
    """The user's own presets in the grid, such as winners of a sweep: name to file content."""

    @property
    def arguments(self) -> list[str]:
        """The arguments of :mod:`pipelines.run_grid`, which decodes the presets."""
        env = [word for name, value in self.env.items() for word in ("--env", f"{name}={value}")]
        pull = [word for name in self.pull for word in ("--pull", name)]
        encoded = [(name, base64.urlsafe_b64encode(text).decode()) for name, text in self.presets.items()]
        presets = [word for name, text in encoded for word in ("--protocol", f"{name}={text}")]
        return [self.grid, *env, *pull, *presets, *self.options]

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "pipelines.run_grid", *self.arguments])


def submission(
    grid: str,
    session: Session,
    env: dict[str, str],
    addresses: dict[str, str],
    options: list[str],
    *,
    local: bool = False,
) -> Submission:
    """Read and check a grid on this machine and prepare its submission.

    ``env``: variables of the job, with addresses as the cluster sees them; ``addresses``: those of the submitter, which
    are sent where ``env`` has no other.  ``local``: the cluster may be on this machine (:func:`may_be_local`).  Raises
    :class:`BadValue` for an address that means nothing, or something else, on the cluster.
    """
    from pipelines.grid.catalog import Catalog
    from pipelines.grid.files import grid_file, load_grid
    from rd3.datasets import dataset_names, dataset_source
    from rd3.protocol import presets

    catalog = Catalog.of(session)
    loaded = load_grid(grid, catalog)
    # What is the user's own in both sizes, as the cluster checks the whole file.
    users = catalog.used_protocols - set(presets())
    names = sorted(
        catalog.used_datasets - set(dataset_names()) | {name for part in loaded.parts for name in part.datasets}
    )
    file = grid_file(grid)
    return Submission(
        name=loaded.name,
        grid=Path(grid).name if file else grid,
        file=file,
        options=options,
        env={name: shared_address(name, value, local) for name, value in addresses.items() if name not in env}
        | {name: free_of_passwords(name, value) for name, value in env.items()},
        # All but the datasets that need no files: they have no folders to search.
        pull=[name for name in names if dataset_source(name, session.roots).places(session.roots)],
        presets={name: (session.presets / f"{name}.yaml").read_bytes() for name in sorted(users)},
    )


def shared_address(name: str, value: str, local: bool = False) -> str:
    """The address unchanged; raises :class:`BadValue` for a path or a server on this machine, and for a password.

    A server on this machine is accepted for a cluster that may be here as well (``local``).
    """
    if "://" not in value or value.startswith(("file:", "sqlite:")):
        raise BadValue(
            f"{name} is {value}, a path on this machine that the cluster cannot see.",
            f"set it to {'s3://bucket/prefix' if name == 'RD3_ARTIFACTS' else 'http://server'}, or give a path that "
            f"all nodes share: --env {name}=...",
        )
    checked = free_of_passwords(name, value)
    if _is_here(value) and not local:
        raise BadValue(
            f"{name} is {value}, which on every node of the cluster means that node itself.",
            f"give the address by which nodes reach that server: --env {name}=...",
        )
    return checked


def may_be_local(address: str | None) -> bool:
    """Whether the cluster at this address, by default that of Ray's environment variables, may be on this machine.

    True for a loopback address, whose port may be forwarded from elsewhere, and without one, as Ray then looks here.
    """
    variables = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    found = address or next((os.environ[name] for name in variables if os.environ.get(name)), "auto")
    return found == "auto" or _is_here(found)


def _is_here(address: str) -> bool:
    """Whether the host of a URL, or of HOST:PORT, is a name of the machine that asks."""
    with contextlib.suppress(ValueError):
        return is_loopback(urlsplit(address if "://" in address else f"//{address}").hostname or "")
    return False


def free_of_passwords(name: str, value: str) -> str:
    """The value unchanged; raises :class:`BadValue` for an address with a password, which Ray shows with the job."""
    if has_password(value):
        raise BadValue(
            f"{name} contains a password, which would be shown with the job.",
            f"remove it from {name} and set it in the environment of the nodes",
        )
    return value


def working_directory(folder: Path, submitted: Submission) -> int:
    """Copy RD3's packages and the grid file into an empty folder; returns their size in bytes.

    Raises :class:`StoreError` before anything is copied if they exceed :data:`LIMIT_BYTES`.
    """
    root = Path(__file__).parents[2]
    code = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    files = {path: path.relative_to(root) for path in code if not _left_out(path.relative_to(root))}
    if submitted.file is not None:
        files[submitted.file] = Path(submitted.file.name)
    sizes = {path: path.stat().st_size for path in files}
    size = sum(sizes.values())
    if size > LIMIT_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise StoreError(
            f"The working directory would be {size / 2**20:.1f} MiB, the limit is {LIMIT_BYTES / 2**20:.0f} MiB; the "
            f"largest file is {files[largest]}.",
            f"keep data and results out of the packages {', '.join(PACKAGES)}",
        )
    for path, name in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return size


def _left_out(path: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in path.parts)


@contextlib.contextmanager
def job_errors(address: str) -> Iterator[None]:
    """Translate the exceptions of Ray's client to :class:`RD3Error`."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise RD3Error(
            f"The Ray cluster at {address} refused the login: the token is wrong or missing.",
            "set RAY_AUTH_MODE=token, and put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token",
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        raise RD3Error(
            f"No Ray cluster responds at {address} ({type(error).__name__}).",
            "give the URL of the head's dashboard, for example --address http://127.0.0.1:8265",
        ) from None
    except RuntimeError as error:  # Ray's client raises it for every error response
        raise _refused(address, str(error)) from None


def _refused(address: str, text: str) -> RD3Error:
    """The error for Ray's text on an error response, which may end with a traceback and a full stop."""
    if versions := mismatch(text):
        theirs, ours = versions
        return RD3Error(
            f"The Ray cluster at {address} was started with {theirs}, and the process there that starts jobs with "
            f"{ours}.",
            "start the cluster again with one version of both",
        )
    response = re.search(r"status code (\d+): (.*)", text, re.DOTALL)
    reason = last_line(response.group(2) if response else text.partition("\n")[0], "no reason given")
    return RD3Error(
        f"The Ray cluster at {address} refused the request: {reason}.",
        "see `rd3 jobs list`, and Ray's logs on its head (by default /tmp/ray/session_latest/logs)",
    )


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to the Jobs API at a dashboard's URL, by default the one in Ray's environment variables."""
    if address is not None and not address.startswith(("http://", "https://")):
        raise BadValue(
            f"--address must be the URL of the head's dashboard, got {address!r}.",
            "for example: http://127.0.0.1:8265",
        )
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # takes precedence over the argument of Ray's client
    with job_errors(address or "the address in Ray's environment variables"):
        from ray.job_submission import JobSubmissionClient

        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        return JobSubmissionClient(address)


def _check_ray(theirs: str, where: str) -> None:
    """Raise :class:`RD3Error` for another version of Ray than that of this process."""
    import ray

    if theirs != ray.__version__:
        raise RD3Error(
            f"{where} runs Ray {theirs}, this machine has Ray {ray.__version__}.",
            f"install ray=={ray.__version__} on its nodes, or ray=={theirs} here",
        )


def check_versions(printed: str, where: str) -> None:
    """Compare what :data:`PROBE` printed with this process; raise :class:`RD3Error` if the versions differ."""
    found = re.search(r"rd3-probe (\S+) (\S+)", printed)
    if found is None:
        raise RD3Error(
            f"{where} cannot start Python with Ray: {last_line(printed, 'no output')[:200]!r}.",
            "install RD3's packages there, and start Ray with their Python first in PATH",
        )
    python, theirs = found.groups()
    ours = platform.python_version()
    _check_ray(theirs, where)
    if python.split(".")[:2] != ours.split(".")[:2]:
        raise RD3Error(
            f"{where} runs Python {python}, this machine has Python {ours}.",
            f"use Python {'.'.join(ours.split('.')[:2])} on its nodes, or submit from a matching environment",
        )


def probe(client: JobSubmissionClient, address: str) -> None:
    """Check the version of Ray that the head gave on connecting, then all versions with a small job there."""
    reported = getattr(client, "_server_ray_version", None)  # private in Ray; the probe job reports it as well
    if reported:
        _check_ray(reported, f"The cluster at {address}")
    with job_errors(address):
        job = client.submit_job(entrypoint=PROBE, submission_id=f"rd3-probe-{secrets.token_hex(4)}")
        deadline = time.monotonic() + _PROBE_WITHIN_S
        while not (info := client.get_job_info(job)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(_POLL_EVERY_S / 2)
        if not info.status.is_terminal():
            client.stop_job(job)
            raise RD3Error(
                f"The cluster at {address} did not start a job within {_PROBE_WITHIN_S:.0f} s.",
                "check its head node and `rd3 jobs list`, then submit again",
            )
        printed = client.get_job_logs(job) or info.message or ""
        client.delete_job(job)
    check_versions(printed, f"The cluster at {address}")


def send(client: JobSubmissionClient, address: str, submitted: Submission, folder: Path) -> str:
    """Start the job; returns its ID."""
    from rd3 import __version__

    with job_errors(address):
        return client.submit_job(
            entrypoint=submitted.entrypoint,
            submission_id=f"rd3-{re.sub('[^A-Za-z0-9-]', '-', submitted.name)}-{secrets.token_hex(4)}",
            runtime_env={
                "working_dir": str(folder),
                # Read by the process that stops the job, not by the job.
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            metadata={"rd3.grid": submitted.name, "rd3.version": __version__},
        )


class _NotWritten(Exception):
    """The log cannot be written here; its cause is the error of ``write``."""


def follow(client: JobSubmissionClient, address: str, job: str, write: Callable[[str], Any]) -> int:
    """Write a job's log as it grows, until the job ends; returns the exit code of its command.

    Reconnects to a head that still responds, without repeating output.  Errors of ``write`` are raised.
    """
    import aiohttp

    written = 0

    async def tail() -> None:
        nonlocal written
        seen = 0
        async for chunk in client.tail_job_logs(job):
            seen += len(chunk)
            if seen > written:
                try:
                    write(chunk[len(chunk) - (seen - written) :])
                except OSError as error:  # for example a closed pipe; the connection to the head is intact
                    raise _NotWritten from error
                written = seen

    while True:
        broken = False
        try:
            asyncio.run(tail())
        except _NotWritten as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        except (RuntimeError, OSError, aiohttp.ClientError):
            broken = True
        with job_errors(address):
            info = client.get_job_info(job)
            rest = client.get_job_logs(job)[written:] if broken and info.status.is_terminal() else ""
        if info.status.is_terminal():
            write(rest)
            return exit_code(info)
        time.sleep(_POLL_EVERY_S)


def stop(client: JobSubmissionClient, job: str) -> str:
    """Ask the job to stop and wait for its end; returns its final state.

    Raises :class:`RD3Error` if Ray has not killed it in time; Ray's own errors are left to :func:`job_errors`.
    """
    client.stop_job(job)
    within_s = STOP_WAIT_S + _KILL_WITHIN_S
    deadline = time.monotonic() + within_s
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
        time.sleep(_POLL_EVERY_S / 2)
    state = str(status.value).lower()
    if not status.is_terminal():
        raise RD3Error(
            f"Job {job} was asked to stop and is still {state} after {within_s:.0f} s.",
            f"look again with `rd3 jobs status {job}`, and check the cluster's head node",
        )
    return state


def exit_code(info: Any) -> int:
    """0 for a job that succeeded, 130 for one that was stopped, else the exit code of its command."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return 130
    return info.driver_exit_code or 1
