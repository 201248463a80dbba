"""``rd3 plan``, ``rd3 run``, ``rd3 status``, ``rd3 report``: a grid from plan to report."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from pipelines.commands._show import console, ledger_line, show_reasons, show_table, stderr
from pipelines.commands.byhand import show_failures
from pipelines.settings import Session, reading_session, session, settle_home, writing_session
from rd3.duration import duration
from rd3.errors import BadValue

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion
    from pipelines.grid.plan import Plan
    from rd3.planning.cached_logits import LogitsForecast
    from tracking.report.results import Results

GridArgument = Annotated[str, Argument(help="Name of a built-in grid (rd3 list grids) or path of a YAML file.")]
AddressOption = Annotated[str | None, Option(help="Address of a Ray cluster (default: run on this machine).")]

ConcurrentOption = Annotated[
    int | None, Option(help="Maximum number of parallel trials (default: as many as fit).", min=1)
]
SharesOption = Annotated[int, Option(help="Number of trials that generate one set together, block by block.", min=1)]
_MOST_ROWS = 200
"""Results that `rd3 report` prints; all of them are in its files."""
DeviceOption = Annotated[
    str | None,
    Option(help="Device for cost estimates: cpu, cuda, or the name of a device calibrated with `rd3 calibrate`."),
]
MaxHoursOption = Annotated[
    float | None, Option(help="Refuse to start a grid whose plan exceeds this many device-hours.", min=0)
]
CacheLogitsOption = Annotated[
    str | None,
    Option(
        help="Disk budget, e.g. 20GB, for teacher logits that several evaluations need; deleted at the end.",
        metavar="SIZE",
    ),
]
GpuShareOption = Annotated[float, Option(help="Fraction of a GPU per evaluation trial.", min=0.01, max=1)]


def planned(expansion: Expansion, here: Session, device: str | None, devices: int | None, logits_bytes: int) -> Plan:
    """The plan; warns on stderr of results that are not reused: those of an older format, or with moved files."""
    from pipelines.grid.plan import plan_session
    from tracking.upkeep.relocate import former_roots

    if here.ledger.older_format():
        stderr.print(
            f"The results in {here.ledger.root} are in an older format and are not reused. Fix: rd3 ledger upgrade"
        )
    plan = plan_session(expansion, here, device=device, slots=devices, cache_logits_bytes=logits_bytes)
    if plan.stale and (roots := former_roots(here)):
        missing = f"{len(plan.stale)} results are not reused: their files are not found, and were stored at {roots[0]}."
        stderr.print(f"{missing} Fix: if they were moved, `rd3 artifacts relocate`")
    return plan


def plan(
    grid: GridArgument,
    as_json: Annotated[bool, Option("--json", help="Print the complete plan as a JSON object.")] = False,
    every: Annotated[bool, Option("--all", help="Print one line per recipe.")] = False,
    recipes: Annotated[
        Path | None, Option(help="Write every recipe to be run into this folder as JSON, parents first.")
    ] = None,
    store: Annotated[
        Path | None, Option(help="With --recipes: copy the existing parents of these recipes into this folder.")
    ] = None,
    device: DeviceOption = None,
    devices: Annotated[
        int | None, Option(help="Number of devices for the time estimate (default: all on this machine).", min=1)
    ] = None,
    rate: Annotated[float | None, Option(help="Price of one device-hour.", min=0)] = None,
    cache_logits: CacheLogitsOption = None,
) -> None:
    """Show what a run would reuse, run or skip, and its cost.  Nothing is run."""
    if store is not None and recipes is None:
        raise BadValue("--store works only with --recipes.", "also give --recipes FOLDER")
    from pipelines.grid.expand import expanded
    from pipelines.transfer.results import export_results, write_recipes

    budget = budget_bytes(cache_logits)
    with reading_session(may_create_home=True) as here:
        expansion = expanded(grid, here)
        plan = planned(expansion, here, device, devices, budget)
    if as_json:
        money = {} if rate is None else {"money": round(rate * plan.process_s / 3600, 2)}
        sys.stdout.write(json.dumps(plan.to_json() | money, indent=1) + "\n")
    else:
        show_plan(plan, every=every, rate=rate)
        show_notes(expansion)
    if recipes is not None:
        runs = [expansion.recipes[key] for key in plan.keys("run")]
        write_recipes(runs, recipes)
        if store is not None:
            made_from = {key for recipe in runs for _kind, key in recipe.parents()}.difference(plan.keys("run"))
            export_results([expansion.recipes[key] for key in made_from], store, here, teachers=True)
        if not as_json:
            console.print(f"{len(runs)} recipes written to {recipes}, parents first")


def show_plan(plan: Plan, *, every: bool = False, rate: float | None = None) -> None:
    """Print counts by kind, each reason once, and the cost; with ``every``, one line per recipe."""
    show_table([{"kind": kind, **row} for kind, row in plan.counts().items() if any(row.values())])
    if every:
        for item in plan.items:
            cost = f"  about {item.cost_s:.0f} s" if item.cost_s else ""
            console.print(f"{item.status:<11} {(item.key or '')[:12]:<12} {item.label}{cost}")
    show_reasons((item.status, item.reason, item.label) for item in plan.items if item.reason)
    if plan.keys("run"):
        console.print(*cost_lines(plan, rate), sep="\n")


def show_notes(expansion: Expansion) -> None:
    """Print the parts of the grid, or of the sweep, that have no effect."""
    for note in expansion.notes:
        console.print(note)


def cost_lines(plan: Plan, rate: float | None = None) -> list[str]:
    """Device-hours by kind, wall time, disk space and price of a plan, and the source of the estimates."""
    from pipelines.engine.progress import plural

    kinds = ", ".join(f"{plural(kind)} {hours(part['process_s'])}" for kind, part in plan.by_kind().items())
    disk = sum(item.disk_bytes for item in plan.items)
    lines = [
        f"{plan.cells} cells; about {hours(plan.process_s)} device-hours ({kinds}), "
        f"probably {hours(plan.range_s[0])} to {hours(plan.range_s[1])}",
        f"about {duration(plan.wall_s)} with {plan.slots} devices, one recipe each "
        f"(longest chain {duration(plan.chain_s)}); {size(disk)} of disk space",
    ]
    if rate is not None:
        low, high = (rate * seconds / 3600 for seconds in plan.range_s)
        lines.append(
            f"about {rate * plan.process_s / 3600:,.2f} at {rate:g} per device-hour, probably {low:,.2f} to {high:,.2f}"
        )
    if plan.cached_logits is not None:
        lines.append(cached_logits_line(plan.cached_logits))
    return [*lines, f"cost estimates from {plan.priced}"] if plan.priced else lines


def cached_logits_line(found: LogitsForecast) -> str:
    """What caching teacher logits saves, and the disk space that it takes."""
    too_large = f"; {found.too_large} evaluations share logits that exceed the budget" if found.too_large else ""
    if not found.files:
        return f"cached teacher logits: no two evaluations share logits that fit the budget{too_large}"
    return (
        f"cached teacher logits: {found.readers} of {found.evaluations} evaluations read them instead of having "
        f"{found.images:,} images labelled, about {hours(found.saved_s)} device-hours (packs save part of these "
        f"anyway); {size(found.disk_bytes)} of disk space{too_large}"
    )


def hours(seconds: float) -> str:
    """Hours with two significant digits: ``0.04``, ``3.1``, ``1,250``."""
    count = seconds / 3600
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def size(count: float) -> str:
    """``4 MB``, ``1.2 GB``."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1.0, count / 1e6):.0f} MB"


def budget_bytes(cache_logits: str | None) -> int:
    """The budget of ``--cache-logits`` in bytes; 0 without it."""
    from rd3.evaluation.sharing import disk_budget

    return 0 if cache_logits is None else disk_budget(cache_logits)


def check_hours(plan: Plan, most: float | None, grid: str) -> None:
    """Raise :class:`BadValue` for a plan with more than ``most`` device-hours."""
    if most is not None and plan.process_s > 3600 * most:
        raise BadValue(
            f"The rest of {grid} takes about {hours(plan.process_s)} device-hours, more than --max-hours {most:g}.",
            f"raise --max-hours or reduce the grid; `rd3 plan {shlex.quote(grid)} --all` shows the times of recipes",
        )


def run(
    grids: Annotated[
        list[str], Argument(help="Names of built-in grids (rd3 list grids) or paths of YAML files, run in turn.")
    ],
    address: AddressOption = None,
    concurrent: ConcurrentOption = None,
    shares: SharesOption = 1,
    gpu_share: GpuShareOption = 0.25,
    device: DeviceOption = None,
    max_hours: MaxHoursOption = None,
    cache_logits: CacheLogitsOption = None,
    local: Annotated[
        bool, Option("--local", help="Run in this process, without Ray, one recipe after another.")
    ] = False,
) -> None:
    """Run every recipe that has no result yet; run again to resume.  Several grids share one start of Ray."""
    from pipelines.cluster.local import ray_log
    from pipelines.cluster.ray import ray_cluster
    from pipelines.engine.execute import execute
    from pipelines.engine.workers import RayWorkers, ThisProcess
    from pipelines.grid.expand import expanded

    budget = budget_bytes(cache_logits)
    if local and (address or concurrent or shares > 1):
        raise BadValue("--local runs one recipe at a time.", "leave out --address, --concurrent and --shares")
    here = writing_session()
    expansions = {grid: expanded(grid, here) for grid in grids}  # a mistake in any file is found before anything runs
    code = 0
    with contextlib.ExitStack() as shared:
        for grid, expansion in expansions.items():
            plan = planned(expansion, here, device, 1 if local else None, budget)
            check_hours(plan, max_hours, grid)
            if len(grids) > 1:
                console.print(f"grid {expansion.source_grid.name}")
            show_plan(plan)
            show_notes(expansion)
            workers = ThisProcess() if local else RayWorkers(address)
            if len(grids) > 1 and not local and plan.keys("run"):
                shared.enter_context(ray_cluster(address, ray_log(here.home)))  # used by this grid and those after it
            outcome = execute(
                expansion,
                plan,
                here,
                workers=workers,
                max_concurrent=concurrent,
                gpu_share=gpu_share,
                shares=shares,
                cache_logits_bytes=budget,
            )
            console.print(
                f"{len(outcome.done)} completed, {len(outcome.reused)} reused, {len(outcome.failed)} failed or blocked"
            )
            show_failures(outcome)
            code = max(code, outcome.exit_code)
            if outcome.interrupted:
                console.print(f"interrupted by {outcome.interrupted}; run the same command again to resume")
                break
            if not outcome.exit_code:
                console.print(f"Next: rd3 report {shlex.quote(grid)}")
    if code:
        raise Exit(code)


def status(grid: GridArgument) -> None:
    """Show the progress of a grid, during a run or afterwards."""
    from pipelines.engine.status import grid_status
    from pipelines.grid.expand import expanded

    with reading_session() as here:
        found = grid_status(expanded(grid, here), here.ledger, here.home)
    console.print(ledger_line(here))
    show_table([{"kind": kind, **row} for kind, row in found.counts.items()])
    for one in found.running:
        console.print(f"running  {one['label']}, attempt {one['attempt']}, since {one['since']}")
    for one in found.failed:
        console.print(f"{one['status']}  {one['label']}: {one['reason']}")


def report(
    grid: GridArgument,
    out: Annotated[Path | None, Option(help="Output folder (default: reports/GRID in RD3's home).")] = None,
    tsne: Annotated[
        bool, Option("--tsne", help="Add t-SNE maps of features where the grid does not say `embedding: true`.")
    ] = False,
) -> None:
    """Write the result tables as Markdown and CSV, and one self-contained HTML page."""
    from pipelines.workspace import Workspace

    loaded = Workspace().grid(grid)
    here = loaded.workspace.session
    results = loaded.summarised()
    charts = loaded.charts(results, embedding=tsne)
    written = loaded.report(out, results, charts)
    rows = result_rows(results)
    show_table(rows[:_MOST_ROWS])
    if len(rows) > _MOST_ROWS:
        console.print(f"and {len(rows) - _MOST_ROWS} more, in the report")
    for reason in dict.fromkeys(loaded.expansion.blocked.values()):
        console.print(f"results not looked up, shown as not done: {reason}")
    for sentence in loaded.other_code(results):
        console.print(f"results shown: {sentence}")
    for chart in charts:
        if not chart.svg:
            console.print(f"{chart.title}: {chart.caption}")
    for path in written.values():
        console.print(f"wrote {path}")
    page = show_in_mlflow(loaded.name, results, here, written, loaded.expansion.source_grid.text, loaded.runs)
    console.print(ui_line(here, page))


def publish(
    grids: Annotated[list[str], Argument(help="Names of built-in grids or paths of YAML files.")],
    out: Annotated[Path, Option(help="Output folder of the static site.")],
) -> None:
    """Write the reports of several grids and a leaderboard of their results as a static site."""
    from pipelines.transfer.results import replace_recipes
    from pipelines.workspace import Workspace
    from rd3.store import write_atomically
    from tracking.report.leaderboard import Published, write_leaderboard

    work = Workspace()
    loaded = [work.grid(grid) for grid in grids]
    named = {one.name: one for one in loaded}
    if len(named) < len(loaded):
        raise BadValue("Two of these grids have the same name.", "set `name` in one of the files")
    found = {name: one.summarised() for name, one in named.items()}
    published = {}
    for name, one in named.items():
        grid = one.expansion.source_grid
        one.report(out / name, found[name])
        write_atomically(out / name / "grid.yaml", grid.text)
        replace_recipes(list(one.expansion.recipes.values()), out / name / "recipes")
        file = "grid-small.yaml" if grid.small else "grid.yaml"
        published[name] = Published(grid.description, f"rd3 run {file}")
    console.print(f"wrote {write_leaderboard(found, published, out)}")


def show_in_mlflow(
    name: str, results: Results, here: Session, files: Mapping[str, Path], grid_yaml: str = "", runs: Sequence[Any] = ()
) -> str:
    """Attach the report's files to the grid's MLflow run; returns the path of its evaluations in the UI.

    ``runs``: as of :func:`tracking.report.publish.publish`.
    A grid with results but without a run, as other grids had computed them all, gets one, with the file ``grid_yaml``.
    An unreachable server is only reported.
    """
    from rd3.errors import StoreError, TrackingError
    from tracking.report.publish import publish, shared_view
    from tracking.runs.runs import Tracker
    from tracking.store import EXPERIMENT

    tracker = Tracker(here.with_identity(work=f"grid {name}"))
    try:
        settle_home(here)
        tracker.check()
        run_id = tracker.find_grid(EXPERIMENT, name)
        if run_id is None and (results.frame["status"] == "done").any():
            run_id = tracker.grid_run(tracker.experiment(EXPERIMENT), name, grid_yaml=grid_yaml)
            tracker.close_grid(run_id, ok=bool((results.frame["status"] != "missing").all()))
        if run_id is not None:
            publish(tracker, run_id, name, results, files, runs)
            return shared_view(tracker, run_id, name)
    except (TrackingError, StoreError) as error:
        console.print(f"report not uploaded to MLflow: {error}")
    return ""


def export_outcomes(
    source: Annotated[str, Argument(help="A grid, or a folder with results (a store or a study).")],
    folder: Annotated[Path, Argument(help="Output folder; import it elsewhere with `rd3 import-results`.")],
    teachers: Annotated[
        bool, Option("--teachers", help="Include networks, which are large: teachers and kept students.")
    ] = False,
    study: Annotated[
        bool, Option("--study", help="Write a study: a few files, suited to a repository (docs/artifacts.md).")
    ] = False,
) -> None:
    """Export the finished results of a grid (statistics, sets, evaluations) to a folder."""
    from pipelines.grid.expand import expanded
    from pipelines.transfer import results as imports

    if imports.holds_results(Path(source)) or (os.sep in source and Path(source).is_dir()):  # no grid is a folder
        convert = imports.convert_to_study if study else imports.convert_to_store
        outcome = convert(Path(source), folder, teachers=teachers)
    else:
        here = session()
        export = imports.export_study if study else imports.export_results
        outcome = export(expanded(source, here).recipes.values(), folder, here, teachers=teachers)
    new, left_out = (outcome, 0) if isinstance(outcome, int) else outcome
    console.print(f"{new} new results in {folder}")
    if left_out:
        console.print(f"{left_out} results exported without their files: large sets, or networks (--teachers)")


def result_rows(results: Results) -> list[dict[str, str | int]]:
    """Scores of the grid for the terminal, one row per point."""
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
            "run/published": reduced_text(score.reduced),
        }
        for score in results.scores
    ]
    # Constant columns are left to the HTML report.
    constant = {name for name in ("dataset", "labels", "student", "changed") if len({row[name] for row in found}) == 1}
    constant |= {name for name in ("paper", "run/published") if not any(row[name] for row in found)}
    return [{name: value for name, value in row.items() if name not in constant} for row in found]


def ui_line(here: Session, page: str = "") -> str:
    """How to open the MLflow UI, at the path ``page``."""
    uri = here.tracking_uri
    if uri.startswith(("http://", "https://")):
        return f"MLflow UI: {uri.rstrip('/')}{page}"
    command = shlex.join([str(Path(sys.executable).parent / "mlflow"), "ui", "--backend-store-uri", uri])
    return f"MLflow UI: {command}" + (f"\nthen open http://127.0.0.1:5000{page}" if page else "")
