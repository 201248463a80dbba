"""``rd3 submit`` and ``rd3 jobs``: run a grid on a remote Ray cluster."""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from pipelines.commands import grid as grid_commands
from pipelines.commands._show import JsonOption, console, show_table
from pipelines.settings import addresses, addresses_to_share, session

app = Typer(name="jobs", help="Jobs sent by `rd3 submit`: list, status, logs, stop.", no_args_is_help=True)

AddressOption = Annotated[
    str | None, Option(help="URL of the head node's dashboard (default: RAY_API_SERVER_ADDRESS).", metavar="URL")
]
JobArgument = Annotated[str, Argument(help="Job ID printed by `rd3 submit`, or a prefix of it.")]


def submit(
    grid: grid_commands.GridArgument,
    address: AddressOption = None,
    launcher: Annotated[
        Path | None,
        Option(help="Cluster file of `ray up`; submit with `ray submit` instead of the Jobs API.", metavar="FILE"),
    ] = None,
    env: Annotated[
        list[str] | None,
        Option(
            help="An address as the cluster nodes see it, for example RD3_HOME=/scratch/rd3; repeatable.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    wait: Annotated[bool, Option("--wait/--no-wait", help="Follow the log until the grid has finished.")] = True,
    concurrent: grid_commands.ConcurrentOption = None,
    shares: grid_commands.SharesOption = 1,
    gpu_share: grid_commands.GpuShareOption = 0.25,
    device: grid_commands.DeviceOption = None,
    max_hours: grid_commands.MaxHoursOption = None,
    cache_logits: grid_commands.CacheLogitsOption = None,
) -> None:
    """Run a grid on a Ray cluster, by the Jobs API or Ray's cluster launcher.

    Exit codes are those of `rd3 run`; with --launcher 0, or 1 for any failure.
    """
    from pipelines.cluster import launcher as launched
    from pipelines.cluster import submit as jobs
    from rd3.errors import BadValue

    if launcher is not None and (address is not None or not wait):
        raise BadValue(
            "--launcher takes neither --address nor --no-wait: its file names the head, and `ray submit` waits.",
            "leave them out, or leave out --launcher",
        )
    given: dict[str, object] = {"concurrent": concurrent, "shares": shares, "gpu-share": gpu_share, "device": device}
    given |= {"max-hours": max_hours, "cache-logits": grid_commands.budget_bytes(cache_logits) or None}
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    local = launcher is None and jobs.may_be_local(address)  # then addresses of servers on this machine may be sent
    ours = addresses_to_share()  # sent where --env has no other
    submitted = jobs.submission(grid, session(), addresses(env or []), ours, options, local=local)
    if launcher is not None:
        launched.probe(launcher)
        raise Exit(launched.submit(launcher, submitted))
    client = jobs.connect(address)
    where = client.get_address()
    jobs.probe(client, where)
    with tempfile.TemporaryDirectory(prefix="rd3-submit-") as folder:
        size = jobs.working_directory(Path(folder), submitted)
        console.print(f"sending {size / 2**20:.1f} MiB to {where}: {', '.join(jobs.PACKAGES)} and the grid")
        job = jobs.send(client, where, submitted, Path(folder))
    console.print(f"job {job}; `rd3 jobs status|logs|stop {job}`")
    if wait:
        raise Exit(_follow(client, where, job))


def _follow(client: Any, where: str, job: str) -> int:
    from pipelines.cluster.submit import follow

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return follow(client, where, job, write)
    except KeyboardInterrupt:
        console.print(
            f"\nthe job is still running; `rd3 jobs logs {job}` shows its log, `rd3 jobs stop {job}` stops it"
        )
        return 130


def _found(job: str, address: str | None) -> tuple[Any, str, Any]:
    """(client, its address, the one job of `rd3 submit` whose ID starts with ``job``, or any job with this ID)."""
    from pipelines.cluster import submit as jobs
    from rd3.errors import UnknownName

    client = jobs.connect(address)
    where = client.get_address()
    with jobs.job_errors(where):
        every = client.list_jobs()
    exact = [info for info in every if info.submission_id == job]
    infos = [info for info in every if _grid(info) and (info.submission_id or "").startswith(job)]
    if len(infos) != 1 and not exact:
        found = f"{len(infos)} job IDs start" if infos else "No job ID starts"
        raise UnknownName(f"{found} with {job!r} at {where}.", "see `rd3 jobs list`")
    return client, where, (exact or infos)[0]


def _grid(info: Any) -> str:
    """Name of the grid of a job; "" for one that `rd3 submit` did not send."""
    return str((info.metadata or {}).get("rd3.grid", ""))


def _row(info: Any) -> dict[str, str]:
    def when(millis: int | None) -> str:
        return datetime.fromtimestamp(millis / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if millis else ""

    return {
        "job": info.submission_id,
        "grid": _grid(info),
        "state": str(info.status.value).lower(),
        "started (UTC)": when(info.start_time),
        "ended": when(info.end_time),
    }


@app.command("list")
def listed(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """List the jobs on a cluster, newest first."""
    from pipelines.cluster import submit as jobs

    client = jobs.connect(address)
    with jobs.job_errors(client.get_address()):
        infos = [info for info in client.list_jobs() if _grid(info)]
    show_table([_row(info) for info in sorted(infos, key=lambda info: -(info.start_time or 0))], as_json=as_json)


@app.command("status")
def status(job: JobArgument, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Show the state of a job.  Exit code 0 while it runs or if it succeeded, else the exit code of its command."""
    from pipelines.cluster.submit import exit_code

    _client, _where, info = _found(job, address)
    facts = {**_row(info), "said": info.message or "", "command": info.entrypoint}
    show_table([facts] if as_json else [{"": name, " ": value} for name, value in facts.items()], as_json=as_json)
    raise Exit(exit_code(info) if info.status.is_terminal() else 0)


@app.command("logs")
def logs(
    job: JobArgument,
    address: AddressOption = None,
    follow: Annotated[bool, Option(help="Follow the log until the job ends.")] = False,
) -> None:
    """Print the log of a job."""
    from pipelines.cluster import submit as jobs

    client, where, info = _found(job, address)
    if follow:
        raise Exit(_follow(client, where, info.submission_id))
    with jobs.job_errors(where):
        text = client.get_job_logs(info.submission_id)
    sys.stdout.write(text)  # a closed pipe is not an error of the cluster


@app.command("stop")
def stop(job: JobArgument, address: AddressOption = None) -> None:
    """Stop a job gracefully: it closes its MLflow runs; submit the same grid again to resume."""
    from pipelines.cluster import submit as jobs

    client, where, info = _found(job, address)
    with jobs.job_errors(where):
        ended = jobs.stop(client, info.submission_id)
    console.print(f"job {info.submission_id}: {ended}")
