"""``rd3 sweep``: tune fields of the evaluation protocol for each method on validation images.

The base protocol of the file is the start of the search.  The winner of a method is the point with the best validation
accuracy; winner and base protocol are tested once on test images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from pipelines.commands._show import console, show_reasons, show_table
from pipelines.commands.grid import AddressOption, CacheLogitsOption, budget_bytes, show_notes, show_plan, ui_line
from pipelines.settings import writing_session

if TYPE_CHECKING:
    from pipelines.sweep.run import SweepOutcome
    from pipelines.sweep.subject import Subject
    from pipelines.sweep.values import Sweep


def sweep(
    file: Annotated[str, Argument(help="Name of a built-in sweep (rd3 list sweeps) or path of a YAML file.")],
    address: AddressOption = None,
    concurrent: Annotated[
        int | None, Option(help="Maximum number of parallel trials (default: as many as fit).", min=1)
    ] = None,
    gpu_share: Annotated[float, Option(help="Fraction of a GPU per trial.", min=0.01, max=1)] = 0.25,
    storage: Annotated[
        str,
        Option(
            help="Optuna storage: journal (a file), tracking (the tracking server's PostgreSQL database), or a URL."
        ),
    ] = "journal",
    cache_logits: CacheLogitsOption = None,
    save_to: Annotated[Path | None, Option(help="Also write the winning protocols to this folder.")] = None,
    report: Annotated[bool, Option("--report", help="Only write the report of existing results.")] = False,
) -> None:
    """Tune a protocol on validation images and test the winner once; run again to resume."""
    from pipelines.grid.catalog import Catalog
    from pipelines.sweep.files import load_sweep
    from pipelines.sweep.page import page_of
    from pipelines.sweep.run import SweepRun
    from pipelines.sweep.subject import subjects
    from pipelines.sweep.winner import check_free, write_preset
    from tracking.report.sweep_report import write_sweep_report

    here = writing_session()
    catalog = Catalog.of(here)
    loaded = load_sweep(file, catalog)
    found = subjects(loaded, catalog)
    if save_to is not None:
        for subject in found:
            check_free(save_to, subject.winner_name, loaded.name)
    running = SweepRun(
        loaded,
        found,
        here,
        address=address,
        concurrent=concurrent,
        gpu_share=gpu_share,
        storage=storage,
        cache_logits_bytes=budget_bytes(cache_logits),
        plan_shown=lambda plan: show_plan(plan) if plan.keys("run") else None,
    )
    written: dict[str, Path] = {}

    def publish(outcome: SweepOutcome) -> dict[str, bytes | str]:
        page = page_of(loaded, outcome, here.ledger, storage)
        written.update(write_sweep_report(page, here.home / "reports" / "sweeps" / loaded.name))
        return {} if report or outcome.exit_code else report_files(outcome, written)

    if report:
        outcome = running.existing()
        publish(outcome)
    else:
        show_intent(loaded, found)
        outcome = running.run(publish)
    show_winners(outcome)
    if save_to is not None:
        for preset in outcome.winners.values():
            console.print(f"wrote {write_preset(preset, save_to, loaded.name)}")
    for name in ("report.md", "report.html") if written else ():
        console.print(f"wrote {written[name]}")
    console.print(ui_line(here))
    show_reasons(outcome.failed)
    if outcome.interrupted:
        console.print(f"interrupted by {outcome.interrupted}; run the same command again to resume")
    if outcome.exit_code:
        raise Exit(outcome.exit_code)


def show_intent(asked: Sweep, found: list[Subject]) -> None:
    """Print what the sweep will do and its cost, before it starts; ``found``: its methods with set and teacher."""
    from pipelines.sweep.page import fairness
    from rd3.hardware import hardware

    device = "GPU" if hardware().kind == "cuda" else "CPU"
    seconds = sum(subject.trial_s() for subject in found) * asked.trials
    tests = 2 * len(asked.test_seeds) * len(found)
    console.print(f"{asked.name}: {fairness(asked)}")
    console.print(
        f"Trials take at most about {seconds / 60:.1f} minutes of {device} time (rough, at the base point); then each "
        f"winner and {asked.protocol.name} are tested once, in at most {tests} evaluations, with sets and teacher from "
        "all training images.",
    )
    for subject in found:
        show_notes(subject.expansion)
    for saw in dict.fromkeys(subject.teacher_saw for subject in found):
        console.print(f"Teacher {asked.teacher}: {saw}.")


def show_winners(outcome: SweepOutcome) -> None:
    """Print the tests of all winners, also of other sweeps of the same set, teacher and student: the best is biased."""
    from pipelines.sweep.winner import winners_of

    rows = [
        {
            "protocol": outcome.winners[label].name if test.current else f"(sweep {test.sweep}, another winner)",
            "method": label,
            "on validation": f"{test.validation_top1_pct:.2f}",
            "test winner": test.text()["winner"],
            "test base": test.text()["base"],
            "difference": test.text()["difference"].partition(", p ")[0],
        }
        for label, tests in outcome.tests.items()
        for test in tests
    ]
    if rows:
        show_table(rows)
    for label, tests in outcome.tests.items():
        if (winners := winners_of(tests)) > 1:
            console.print(f"{label}: {winners} winners were tested; the best is now subject to selection bias.")


def report_files(outcome: SweepOutcome, written: dict[str, Path]) -> dict[str, bytes | str]:
    """Report and plots for the sweep's MLflow run: SVG as in the report, PNG for the MLflow UI."""
    from pipelines.sweep.plots import draw

    files: dict[str, bytes | str] = {name: path.read_bytes() for name, path in written.items()}
    for label, tuning in outcome.tunings.items():
        files |= {f"{label}-{name}.png": png for name, png in draw(tuning, "png").items()}
    return files
