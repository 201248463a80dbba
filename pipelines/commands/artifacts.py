"""``rd3 artifacts``: are the files behind the ledger whole, what may be deleted, and how they travel."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands._show import console, ledger_line, show_table
from pipelines.settings import Session, session

if TYPE_CHECKING:
    from rd3.recipe import Key
    from tracking.ledger.ledger import Ledger

app = typer.Typer(help="Files behind the ledger: verify, collect garbage, fetch, push, rebuild.", no_args_is_help=True)

KeysArgument = Annotated[list[str] | None, typer.Argument(help="Keys, or their first digits; default: everything.")]
GridOption = Annotated[str | None, typer.Option("--grid", help="Only what this grid asks for.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON array.")]


@app.command("verify")
def verify(
    keys: KeysArgument = None,
    grid: GridOption = None,
    forget: Annotated[bool, typer.Option("--forget", help="Remove damaged entries; the next run makes them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every sha256 at the source; damage is listed, and the exit code is 3."""
    from tracking.store import TrackedStore
    from tracking.upkeep.verify import check_entries

    here = session()
    store = TrackedStore(here)
    checked = list(check_entries(store, wanted(store.ledger, here, keys, grid)))
    damaged = [one for one in checked if one.damage]
    if as_json or damaged:
        rows = [{"kind": one.kind, "key": one.key[:12], "what": one.label, "damage": one.damage} for one in damaged]
        show_table(rows, as_json=as_json)
    if not as_json:
        where = "" if checked or grid else f" in {ledger_line(here)}"
        bare = sum(one.bare for one in checked)
        without = f", {bare} came without files" if bare else ""
        said = f"{len(checked) - len(damaged) - bare} whole, {len(damaged)} damaged{without}{where}"
        console.print(said, markup=False, soft_wrap=True)
    if forget and damaged:
        forget_entries(store.ledger, here, [(one.kind, one.key) for one in damaged])
        console.print("forgotten; `rd3 run` makes them again")
    if damaged:
        raise typer.Exit(3)


def forget_entries(ledger: Ledger, here: Session, entries: list[tuple[str, Key]]) -> None:
    """As a driver does it: out of the ledger, and what this machine keeps of it is not reported again."""
    from pipelines.engine import trial_log
    from pipelines.engine.job import work_folder

    with ledger.lease():
        for kind, key in entries:
            ledger.forget(kind, key)
            shutil.rmtree(work_folder(here.home, kind, key), ignore_errors=True)
            trial_log.append(here.home, "forgotten", kind, key)


def wanted(ledger: Ledger, here: Session, keys: list[str] | None, grid: str | None) -> list[tuple[str, Key]]:
    """(kind, key) of what the words of a command line mean, parents before children."""
    from pipelines.commands.grid import expanded
    from tracking.upkeep.verify import everything

    if keys:
        return [ledger.resolve_any(key) for key in keys]
    found = everything(ledger)
    if grid is None:
        return found
    recipes = expanded(grid, here).recipes
    return [(kind, key) for kind, key in found if key in recipes]


@app.command("gc")
def collect_garbage(
    yes: Annotated[bool, typer.Option("--yes", help="Delete it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what nothing refers to any more, and how large it is; nothing is deleted without --yes.

    What is younger than an hour stays.
    """
    from tracking.runs.runs import Tracker
    from tracking.upkeep.garbage import find_garbage

    here = session()
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
        console.print(f"process {holder['pid']} on {holder['host']} is at work: runs, scratch and cache are left alone")
    state = "deleted" if yes else "may go; --yes deletes, --json lists"
    console.print(f"{sum(sizes.values()) / 2**20:.1f} MiB in {len(found)} pieces {state}")


@app.command("fetch")
def fetch(
    keys: Annotated[list[str], typer.Argument(help="Keys of sets, teachers or evaluations, or their first digits.")],
    out: Annotated[Path | None, typer.Option(help="Copy to DIR/<kind>-<key>; default: say where they lie.")] = None,
) -> None:
    """Bring the verified files of results to this machine."""
    from rd3.errors import BadValue
    from tracking.store import TrackedStore

    store = TrackedStore(session())
    meant = [store.ledger.resolve_any(key) for key in keys]
    for kind, key in meant:
        folder = store.fetch(kind, key)
        if out is not None:
            target = out / f"{kind}-{key[:12]}"
            if target.exists():
                raise BadValue(f"{target} is there already.", "remove it, or name another --out")
            staging = target.with_name(f".{target.name}")
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(folder, staging)
            folder = staging.rename(target)
        console.print(str(folder), markup=False, soft_wrap=True)


@app.command("push")
def push(
    target: Annotated[str, typer.Argument(help="The other artifact root: a folder or s3://bucket/prefix.")],
    tracking: Annotated[str, typer.Option(help="The MLflow server or database that goes with it.")],
    keys: KeysArgument = None,
    grid: GridOption = None,
) -> None:
    """Copy what is done here into another ledger, with runs, files, and all it was made from; again adds nothing."""
    from pipelines.transfer.results import push_results
    from tracking.store import TrackedStore

    here = session()
    ledger = TrackedStore(here).ledger
    brought = push_results(wanted(ledger, here, keys, grid), here, target, tracking)
    new = sum(one.new for one in brought)
    console.print(f"{new} new, {len(brought) - new} there already", soft_wrap=True)


@app.command("rebuild")
def rebuild_ledger() -> None:
    """Fill the ledger from MLflow: every finished run whose files are still there."""
    from tracking.ledger.ledger import Ledger
    from tracking.runs.runs import Tracker
    from tracking.upkeep.rebuild import rebuild

    place = session()
    Tracker(place).check()
    console.print(f"{rebuild(Ledger(place.artifacts), place)} entries were missing")
