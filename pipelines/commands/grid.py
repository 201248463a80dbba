"""``rd3 plan``, ``rd3 run``, ``rd3 status``, ``rd3 report``: a grid from intention to page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipelines.commands._show import console, ledger_line, show_reasons, show_table
from pipelines.commands.byhand import finish
from pipelines.settings import Session, reading_session, session
from rd3.errors import BadValue

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion
    from pipelines.grid.plan import Plan
    from tracking.report.results import Results

GridArgument = Annotated[str, typer.Argument(help="A grid that ships with RD3 (rd3 list grids), or a YAML file.")]
AddressOption = Annotated[str | None, typer.Option(help="A Ray cluster's address; default: this machine.")]

ConcurrentOption = Annotated[int | None, typer.Option(help="Trials at a time (default: as many as fit).")]
SharesOption = Annotated[int, typer.Option(help="Trials that make one set together, block by block.", min=1)]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Price it for cpu, cuda, or a device that `rd3 calibrate` has measured elsewhere (its name)."),
]
MaxHoursOption = Annotated[
    float | None, typer.Option(help="Refuse to start if the plan says more device-hours than this.", min=0)
]
GpuShareOption = Annotated[
    float, typer.Option(help="Part of a GPU that a trial of evaluations takes.", min=0.01, max=1)
]


def add_to(app: typer.Typer) -> None:
    app.command("plan")(plan)
    app.command("run")(run)
    app.command("status")(status)
    app.command("report")(report)
    app.command("export-results")(export_outcomes)


def expanded(grid: str, here: Session) -> Expansion:
    """The grid's cells and recipes, with the user's own datasets, teachers and protocols."""
    from pipelines.grid.catalog import Catalog
    from pipelines.grid.expand import expand
    from pipelines.grid.files import load_grid

    catalog = Catalog.of(here)
    return expand(load_grid(grid, catalog), catalog)


def planned(expansion: Expansion, here: Session, device: str | None = None, devices: int | None = None) -> Plan:
    from pipelines.grid.plan import plan_session

    if here.ledger.older_format():
        said = f"The results in {here.ledger.root} are of an older format and are not reused. Fix: rd3 ledger upgrade"
        Console(stderr=True).print(said, markup=False, soft_wrap=True)
    return plan_session(expansion, here, device=device, slots=devices)


def plan(
    grid: GridArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
    every: Annotated[bool, typer.Option("--all", help="A line for every recipe.")] = False,
    recipes: Annotated[
        Path | None, typer.Option(help="Write every recipe that runs as JSON into this folder, parents first.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="With --recipes: put what they are made from, and is there, into this folder.")
    ] = None,
    device: DeviceOption = None,
    devices: Annotated[int | None, typer.Option(help="How many work at it (default: all here).", min=1)] = None,
    rate: Annotated[float | None, typer.Option(help="Money for an hour of one device.", min=0)] = None,
) -> None:
    """Say what a run would reuse, make, and cannot make, and what it costs.  Nothing is run."""
    if store is not None and recipes is None:
        raise BadValue("--store holds what the recipes of --recipes are made from.", "name a folder for these as well")
    from pipelines.transfer.results import export_results, write_recipes

    here = session()
    expansion = expanded(grid, here)
    made = planned(expansion, here, device, devices)
    if as_json:
        money = {} if rate is None else {"money": round(rate * made.process_s / 3600, 2)}
        sys.stdout.write(json.dumps(made.to_json() | money, indent=1) + "\n")
    else:
        show_plan(made, every=every, rate=rate)
        show_notes(expansion)
    if recipes is not None:
        runs = [expansion.recipes[key] for key in made.keys("run")]
        write_recipes(runs, recipes)
        if store is not None:
            made_from = {key for recipe in runs for _kind, key in recipe.parents()}.difference(made.keys("run"))
            export_results([expansion.recipes[key] for key in made_from], store, here, teachers=True)
        if not as_json:
            console.print(f"{len(runs)} recipes are in {recipes}, parents first", markup=False, soft_wrap=True)


def show_plan(made: Plan, *, every: bool = False, rate: float | None = None) -> None:
    """Counts by kind, each reason once, and what it costs; every recipe where asked for."""
    show_table([{"kind": kind, **row} for kind, row in made.counts().items() if any(row.values())])
    if every:
        for item in made.items:
            cost = f"  about {item.cost_s:.0f} s" if item.cost_s else ""
            console.print(f"{item.status:<11} {(item.key or '')[:12]:<12} {item.label}{cost}", markup=False)
    show_reasons((item.status, item.reason, item.label) for item in made.items if item.reason)
    if made.keys("run"):
        for line in cost_lines(made, rate):
            console.print(line, markup=False, soft_wrap=True)


def show_notes(expansion: Expansion) -> None:
    """What the grid asks for in vain."""
    for note in expansion.notes:
        console.print(note, markup=False, soft_wrap=True)


def cost_lines(made: Plan, rate: float | None = None) -> list[str]:
    """Device-hours by kind, wall time, disk and money of what runs, and what they were worked out from."""
    from pipelines.engine.progress import plural
    from rd3.campaign.view import span

    kinds = ", ".join(f"{plural(kind)} {hours(part['process_s'])}" for kind, part in made.by_kind().items())
    disk = sum(item.disk_bytes for item in made.items)
    lines = [
        f"{made.cells} cells; about {hours(made.process_s)} device-hours ({kinds}), "
        f"probably {hours(made.range_s[0])} to {hours(made.range_s[1])}",
        f"about {span(made.wall_s)} with {made.slots} devices, one recipe each (longest chain {span(made.chain_s)}); "
        f"{size(disk)} on the disk",
    ]
    if rate is not None:
        low, high = (rate * seconds / 3600 for seconds in made.range_s)
        lines.append(
            f"about {rate * made.process_s / 3600:,.2f} at {rate:g} a device-hour, probably {low:,.2f} to {high:,.2f}"
        )
    return [*lines, f"costs from {made.priced}"] if made.priced else lines


def hours(seconds: float) -> str:
    """``0.04``, ``3.1``, ``1,250``: hours, to two digits or whole."""
    count = seconds / 3600
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def size(count: float) -> str:
    """``4 MB``, ``1.2 GB``."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1.0, count / 1e6):.0f} MB"


def check_hours(made: Plan, most: float | None, grid: str) -> None:
    """Refuse a plan that says more device-hours than are wanted."""
    if most is not None and made.process_s > 3600 * most:
        raise BadValue(
            f"What is missing of {grid} takes about {hours(made.process_s)} device-hours, --max-hours is {most:g}.",
            f"allow more, or make less of it: `rd3 plan {grid} --all` says what every recipe takes",
        )


def run(
    grid: GridArgument,
    address: AddressOption = None,
    concurrent: ConcurrentOption = None,
    shares: SharesOption = 1,
    gpu_share: GpuShareOption = 0.25,
    device: DeviceOption = None,
    max_hours: MaxHoursOption = None,
) -> None:
    """Make what is missing of a grid.  Interrupted, killed or failed: the same command goes on."""
    from pipelines.engine.execute import execute

    here = session()
    expansion = expanded(grid, here)
    made = planned(expansion, here, device)
    check_hours(made, max_hours, grid)
    show_plan(made)
    show_notes(expansion)
    outcome = execute(
        expansion, made, here, address=address, max_concurrent=concurrent, gpu_share=gpu_share, shares=shares
    )
    console.print(f"{len(outcome.done)} made, {len(outcome.reused)} reused, {len(outcome.failed)} failed or blocked")
    if outcome.interrupted:
        console.print(f"interrupted by {outcome.interrupted}; the same command goes on")
    finish(outcome)
    console.print(f"Next: rd3 report {grid}")


def status(grid: GridArgument) -> None:
    """Say how far a grid is, from another terminal or after a run."""
    from pipelines.engine.status import grid_status

    with reading_session() as here:
        found = grid_status(expanded(grid, here), here.ledger, here.home)
    console.print(ledger_line(here), markup=False, soft_wrap=True)
    show_table([{"kind": kind, **row} for kind, row in found.counts.items()])
    for one in found.running:
        console.print(f"running  {one['label']}, attempt {one['attempt']}, since {one['since']}", markup=False)
    for one in found.failed:
        console.print(f"{one['status']}  {one['label']}: {one['reason']}", markup=False)


def report(
    grid: GridArgument,
    out: Annotated[Path | None, typer.Option(help="Folder to write to (default: reports/GRID in RD3's home).")] = None,
) -> None:
    """Write the tables as Markdown and CSV and one self-contained HTML page."""
    from pipelines.workspace import Workspace

    loaded = Workspace().grid(grid)
    here = loaded.workspace.session
    folder = out or here.home / "reports" / loaded.name
    results = loaded.summarised()
    written = loaded.report(folder, results)
    show_table(result_rows(results))
    for path in written.values():
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    show_in_mlflow(loaded.name, results, here, folder)
    console.print(ui_line(here), markup=False, soft_wrap=True)


def show_in_mlflow(name: str, results: Results, here: Session, folder: Path) -> None:
    """The report with the grid's run, where there is one; a server that is away does not spoil the report."""
    from rd3.errors import TrackingError
    from tracking.report.publish import publish
    from tracking.runs.runs import Tracker
    from tracking.store import HAND

    tracker = Tracker(here)
    try:
        tracker.check()
        run_id = tracker.find_grid(HAND, name)
        if run_id is not None:
            publish(tracker, run_id, name, results, folder)
    except TrackingError as error:
        console.print(f"not shown in MLflow: {error}", markup=False, soft_wrap=True)


def export_outcomes(
    source: Annotated[str, typer.Argument(help="A grid, or a folder of results: a store or a study.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write to; `rd3 import-results` reads it elsewhere.")],
    teachers: Annotated[bool, typer.Option("--teachers", help="The teachers as well, which are large.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Few files for a repository: docs/artifacts.md.")] = False,
) -> None:
    """Copy what is done of a grid into a folder for others: statistics, sets and evaluations."""
    from pipelines.transfer import results as imports

    if imports.holds_results(Path(source)):
        convert = imports.convert_to_study if study else imports.convert_to_store
        outcome = convert(Path(source), folder, teachers=teachers)
    else:
        here = session()
        export = imports.export_study if study else imports.export_results
        outcome = export(expanded(source, here).recipes.values(), folder, here, teachers=teachers)
    new, left_out = (outcome, 0) if isinstance(outcome, int) else outcome
    console.print(f"{new} results are new in {folder}", markup=False, soft_wrap=True)
    if left_out:
        console.print(f"{left_out} of all are there without their files: large sets, or networks (--teachers)")


def result_rows(results: Results) -> list[dict[str, str | int]]:
    """The grid's numbers for the terminal, one a point."""
    from rd3.component import changes_text
    from tracking.report.tables import reduced_text, top1_text

    found: list[dict[str, str | int]] = [
        {
            "dataset": score.dataset,
            "method": score.method,
            "IPC": score.ipc,
            "labels": score.labels,
            "student": score.student,
            "changed": changes_text({**score.overrides, **score.varied}),
            "top-1 %": top1_text(score),
            "paper": f"{score.paper.mean:.1f}" if score.paper else "",
            "made/published": reduced_text(score),
        }
        for score in results.scores
    ]
    # A column that says the same everywhere is for the page, not for a terminal.
    dull = {name for name in ("dataset", "labels", "student", "changed") if len({row[name] for row in found}) == 1}
    dull |= {name for name in ("paper", "made/published") if not any(row[name] for row in found)}
    return [{name: value for name, value in row.items() if name not in dull} for row in found]


def ui_line(here: Session) -> str:
    """How to look at the runs."""
    uri = here.tracking_uri
    if uri.startswith(("http://", "https://")):
        return f"MLflow UI: {uri}"
    return f"MLflow UI: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}"
