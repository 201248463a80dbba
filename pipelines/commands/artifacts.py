"""``rd3 artifacts``: verify the files behind the ledger, delete unused ones, copy them, rewrite their addresses."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option, Typer

from pipelines.commands._show import JsonOption, console, ledger_line, show_table
from pipelines.settings import Session, session, writing_session
from rd3.errors import TrackingError

if TYPE_CHECKING:
    from rd3.recipe import Key
    from tracking.runs.runs import Tracker

app = Typer(
    name="artifacts",
    help="Files behind the ledger: verify, garbage-collect, fetch, push, relocate, rebuild.",
    no_args_is_help=True,
)

KeysArgument = Annotated[list[str] | None, Argument(help="Keys or key prefixes (default: all).")]
GridOption = Annotated[str | None, Option("--grid", help="Only results that this grid needs.")]


@app.command("verify")
def verify(
    keys: KeysArgument = None,
    grid: GridOption = None,
    forget: Annotated[bool, Option("--forget", help="Remove damaged entries; the next run regenerates them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the SHA-256 of every stored file; list damage and exit with code 3 if there is any."""
    from tracking.runs.digests import missing_runs
    from tracking.runs.runs import Tracker
    from tracking.upkeep.verify import check_entries

    here = writing_session() if forget else session()
    chosen, tracker = wanted(here, keys, grid), Tracker(here)
    tagged, remark = _digests_in_mlflow(tracker) if chosen else ({}, "")
    checked = list(check_entries(here.store, chosen, tagged))
    if not remark and (gone := missing_runs(tracker, {one.run_id for one in checked if one.run_id} - tagged.keys())):
        remark = (
            f"; {gone} without a run in MLflow, deleted, or lost when its database was restored from a backup: "
            "`rd3 artifacts push FOLDER --tracking sqlite:///NEW.db` writes all with new runs"
        )
    damaged = [one for one in checked if one.damage]
    if as_json or damaged:
        rows = [{"kind": one.kind, "key": one.key[:12], "what": one.label, "damage": one.damage} for one in damaged]
        show_table(rows, as_json=as_json)
    if not as_json:
        where = "" if checked or grid else f" in {ledger_line(here)}"
        bare = sum(one.bare for one in checked)
        without = f", {bare} without files" if bare else ""
        summary = f"{len(checked) - len(damaged) - bare} intact, {len(damaged)} damaged{without}{where}"
        console.print(f"{summary}{remark}")
    if forget and damaged:
        forget_entries(here, [(one.kind, one.key) for one in damaged])
    if damaged and not as_json:
        console.print(
            "removed from the ledger; `rd3 run` regenerates them"
            if forget
            else "`rd3 artifacts verify --forget` removes them from the ledger; `rd3 run` then regenerates them"
        )
    if damaged:
        raise Exit(3)


def _digests_in_mlflow(tracker: Tracker) -> tuple[dict[str, str], str]:
    """The digests in MLflow runs, and a remark if the tracking server does not respond."""
    from tracking.runs.digests import tagged_digests

    try:
        tracker.check()
        return tagged_digests(tracker), ""
    except TrackingError as error:
        return {}, f"; digests not compared with MLflow: {error.message}"


def forget_entries(here: Session, entries: list[tuple[str, Key]]) -> None:
    """Remove entries from the ledger, and their local work folders, so that stale results are not reported again."""
    from pipelines.engine import trial_log
    from pipelines.engine.job import work_folder

    with here.ledger.lease():
        for kind, key in entries:
            here.ledger.forget(kind, key)
            shutil.rmtree(work_folder(here.home, kind, key), ignore_errors=True)
            trial_log.append(here.home, "forgotten", kind, key)


def wanted(here: Session, keys: list[str] | None, grid: str | None) -> list[tuple[str, Key]]:
    """(kind, key) of the entries that command-line arguments select."""
    from pipelines.grid.expand import expanded
    from tracking.upkeep.verify import everything

    found = [here.ledger.resolve_any(key) for key in keys] if keys else everything(here.ledger)
    if grid is None:
        return found
    recipes = expanded(grid, here).recipes
    return [(kind, key) for kind, key in found if key in recipes]


@app.command("gc")
def collect_garbage(
    yes: Annotated[bool, Option("--yes", help="Delete the files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List unreferenced files with their sizes; delete them only with --yes.

    Files younger than one hour are kept.
    """
    from tracking.runs.runs import Tracker
    from tracking.upkeep.garbage import find_garbage

    here = writing_session() if yes else session()
    ledger = here.ledger
    Tracker(here).check()
    holder = ledger.lease().holder()
    with ledger.lease() if yes and holder is None else contextlib.nullcontext():
        found = list(find_garbage(here, ledger, driver_lives=holder is not None))
        for one in found if yes else ():
            one.remove()
    if as_json:
        show_table([{"what": one.what, "where": one.where, "bytes": one.size} for one in found], as_json=True)
        return
    counts, sizes = Counter(one.what for one in found), Counter[str]()
    for one in found:
        sizes[one.what] += one.size
    if found:
        show_table([{"what": what, "count": counts[what], "MiB": f"{sizes[what] / 2**20:.1f}"} for what in counts])
    if holder is not None:
        console.print(
            f"process {holder['pid']} on {holder['host']} is running a grid: runs, scratch and cache are kept"
        )
    state = "deleted" if yes else "can be deleted (--yes deletes them, --json lists them)"
    console.print(f"{sum(sizes.values()) / 2**20:.1f} MiB in {len(found)} items {state}")


@app.command("fetch")
def fetch(
    keys: Annotated[list[str], Argument(help="Keys or key prefixes of results.")],
    out: Annotated[
        Path | None, Option(help="Copy to DIR/<kind>-<key> (default: print the path of the cached files).")
    ] = None,
) -> None:
    """Download the files of results to this machine and verify them."""
    from rd3.errors import BadValue
    from rd3.store import new_folder, write_errors

    store = session().store
    selected = [store.ledger.resolve_any(key) for key in keys]
    for kind, key in selected:
        folder = store.fetch(kind, key)
        if out is not None:
            target = out / f"{kind}-{key[:12]}"
            if target.exists():
                raise BadValue(f"{target} already exists.", "remove it, or choose another --out")
            with write_errors(out), new_folder(target) as staging:
                shutil.copytree(folder, staging, dirs_exist_ok=True)
            folder = target
        console.print(str(folder))


@app.command("push")
def push(
    target: Annotated[str, Argument(help="Artifact root to copy to: a folder or s3://bucket/prefix.")],
    tracking: Annotated[str, Option(help="MLflow server or database of that artifact root.")],
    keys: KeysArgument = None,
    grid: GridOption = None,
) -> None:
    """Copy finished results to another ledger, with MLflow runs, files and parents; skip existing entries."""
    from pipelines.transfer.results import push_results

    here = session()
    pushed = push_results(wanted(here, keys, grid), here, target, tracking)
    refused = [one for one in pushed if one.lacking]
    for one in refused:
        console.print(f"{one.kind} {one.key[:12]} not copied: {one.lacking}")
    new = sum(one.new for one in pushed)
    console.print(f"{new} new, {len(pushed) - new - len(refused)} already there")
    if refused:
        raise Exit(3)


@app.command("relocate")
def relocate_files(
    source: Annotated[
        str | None, Option("--from", help="The former artifact root (default: as found in the MLflow database).")
    ] = None,
) -> None:
    """After moving artifacts: rewrite addresses in the ledger and in an SQLite database, which is copied first.

    Commands that write do this by themselves after a home was moved or copied, if its database is in it.
    """
    from pipelines.settings import artifact_root
    from rd3.errors import BadValue
    from tracking.upkeep.relocate import former_roots, relocate, server_advice

    here = session()
    roots = [artifact_root(source, "--from")] if source is not None else former_roots(here)
    if len(roots) > 1:
        raise BadValue(f"The MLflow database has files at {', '.join(roots)}.", "give one of them: --from ADDRESS")
    for root in roots:
        moved = relocate(here, root)
        if not moved.changed and source is not None and not (":/" in source or Path(source).expanduser().is_absolute()):
            raise BadValue(
                f"No address in the ledger or in the MLflow database is below {root}, as --from {source} is read.",
                "give the former artifact root in full, such as /data/rd3/artifacts or s3://bucket/prefix",
            )
        console.print(moved.line())
    if not roots:
        console.print("no addresses of another artifact root in the MLflow database")
    for line in server_advice(here, roots):
        console.print(line)


@app.command("rebuild")
def rebuild_ledger() -> None:
    """Restore ledger entries from MLflow, for every finished run whose files still exist."""
    from tracking.runs.runs import Tracker
    from tracking.upkeep.rebuild import rebuild

    here = writing_session()
    Tracker(here).check()
    rebuilt = rebuild(here.ledger, here)
    console.print(f"{rebuilt.added} entries restored")
    for run in rebuilt.without_entry:
        console.print(f"skipped: finished run {run} in MLflow has no entry.json")
