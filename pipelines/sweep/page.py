"""The content of a sweep's report, from its studies, tests and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.sweep.plots import PLOTS, draw
from pipelines.sweep.subject import Subject, sweep_key
from pipelines.sweep.values import Dimension, Sweep
from pipelines.sweep.winner import winners_of
from rd3.component import plain_text
from rd3.stats import mean
from tracking.report.page import when
from tracking.report.sweep_report import MethodSection, Plot, SweepPage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from pipelines.sweep.run import SweepOutcome
    from tracking.ledger.ledger import Ledger


def page_of(sweep: Sweep, outcome: SweepOutcome, ledger: Ledger, storage: str) -> SweepPage:
    """The data for the report templates."""
    return SweepPage(
        name=sweep.name,
        description=sweep.description,
        lines=_lines(sweep, outcome.subjects, storage),
        fairness=fairness(sweep),
        sections=[_section(subject, outcome, ledger) for subject in outcome.subjects],
    )


def fairness(sweep: Sweep) -> str:
    """The common conditions of the methods of a sweep, in one sentence."""
    budget = f"{sweep.trials} trials by sampler {sweep.sampler} with seed {sweep.seed}, pruner {sweep.pruner}"
    if len(sweep.methods) == 1:
        return f"One method, tuned on validation images: {budget}."
    return (
        f"Each of the {len(sweep.methods)} methods has its own study with the same space and the same budget "
        f"({budget}), tuned on validation images."
    )


def _lines(sweep: Sweep, subjects: list[Subject], storage: str) -> dict[str, str]:
    first = subjects[0]
    saw = dict.fromkeys(subject.teacher_saw for subject in subjects)
    return {
        "tuned on": f"validation images of {sweep.dataset}, held out from its training images",
        "IPC": str(sweep.ipc),
        "teacher": f"{sweep.teacher} ({first.teacher.network}), {'; '.join(saw)}",
        "student": first.bases[0].student,
        "base protocol": sweep.protocol.name + _fields(sweep.protocol.values, before=" with "),
        "space": "; ".join(_dimension(one) for one in sweep.space),
        "budget": f"{sweep.trials} trials per method, in batches of {sweep.batch}",
        "sampler": f"{sweep.sampler}, seed {sweep.seed}",
        "pruner": f"{sweep.pruner}, validation every {sweep.validate_epochs} epochs",
        "seeds": (
            f"set {sweep.set_seed}; students of a trial {_listed(sweep.student_seeds)}; "
            f"students of the test {_listed(sweep.test_seeds)}"
        ),
        "studies": storage,
        "key": sweep_key(subjects),
    }


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _dimension(one: Dimension) -> str:
    if one.choices:
        return f"{one.field} of {', '.join(_value(value) for value in one.choices)}"
    how = " (logarithmic)" if one.log else f" in steps of {one.step:g}" if one.step else ""
    return f"{one.field} from {one.low:g} to {one.high:g}{how}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else plain_text(value)


def _fields(params: Mapping[str, Any], before: str = "") -> str:
    return before + ", ".join(f"{name} {_value(value)}" for name, value in params.items()) if params else ""


def _section(subject: Subject, outcome: SweepOutcome, ledger: Ledger) -> MethodSection:
    tuning = outcome.tunings[subject.label]
    trials, best = tuning.trials(), tuning.best()
    states = Counter(trial.state.name.lower() for trial in trials)
    shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    ran = sorted({precision for trial in trials for precision in trial.user_attrs.get("ran_precision", ())})
    shown += f"; scores across {' and '.join(ran)}" if len(ran) > 1 else ""
    winner = best if subject.label in outcome.winners else None  # none until the study is complete
    return MethodSection(
        label=subject.label,
        study=subject.study,
        state=f"{len(trials)} of {subject.sweep.trials} trials" + (f": {shown}" if shown else ""),
        preset=subject.winner_name if winner is not None else "",
        winner=_tuned_fields(subject, winner) if winner is not None else [],
        validation={
            "winner": f"{best.value:.2f} (trial {best.number})" if best else "",
            "base": _base(subject, ledger),
        },
        tests=[
            {
                **test.text(),
                "params": _fields(test.params),
                "validation": f"{test.validation_top1_pct:.2f}",
                "sweep": test.sweep,
                "when": when(test.recorded_at),
                "current": "yes" if test.current else "no",
            }
            for test in outcome.tests.get(subject.label, [])
        ],
        winners=winners_of(outcome.tests.get(subject.label, [])),
        trials=[_trial(trial) for trial in trials],
        plots=[Plot(name, PLOTS[name], svg) for name, svg in draw(tuning).items()],
    )


def _tuned_fields(subject: Subject, best: FrozenTrial) -> list[dict[str, str]]:
    base, winner = subject.protocol({}), subject.protocol(best.params)
    tuned = [one.field for one in subject.sweep.space]
    tuned += ["loss"] if "labels" in tuned and "loss" not in tuned else []
    return [{"field": name, "base": _value(base.value(name)), "winner": _value(winner.value(name))} for name in tuned]


def _base(subject: Subject, ledger: Ledger) -> str:
    entries = ledger.find_many("evaluation", [recipe.key for recipe in subject.bases])
    if len(entries) < len(subject.bases):
        return "not run yet"
    return f"{mean([entry.result['top1_pct'] for entry in entries.values()]):.2f}"


def _trial(trial: FrozenTrial) -> dict[str, str]:
    complete = trial.state.name == "COMPLETE"
    last = max(trial.intermediate_values, default=None)
    return {
        "number": str(trial.number),
        "state": trial.state.name.lower() if complete else trial.user_attrs.get("stopped", trial.state.name.lower()),
        "score": f"{trial.value:.2f}" if complete else "",
        "look": "" if last is None else f"{trial.intermediate_values[last]:.2f} at epoch {last}",
        "params": _fields(trial.params),
    }
