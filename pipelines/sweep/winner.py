"""The winner of a sweep: its best configuration as a protocol preset, and the single test of it on the test split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from pipelines.grid.expand import Expansion
from pipelines.sweep.subject import Subject
from rd3.comparisons import single_difference
from rd3.component import Component
from rd3.errors import BadValue
from rd3.losses import LOSSES
from rd3.preset_rules import Rule
from rd3.protocol import EvalProtocol, Preset, implied_by, merged, presets, read_preset, unchanged_by
from rd3.recipe import EvaluationRecipe, Key
from rd3.stats import PairedDifference, mean, std
from rd3.store import Entry, now, write_atomically
from rd3.values import digest
from tracking.runs.sweeps import SweepRecords

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial


def winner_preset(subject: Subject, best: FrozenTrial, trials: int) -> Preset:
    """The best trial as a preset: tuned fields apply to every student, the others are those of the base preset."""
    base, tuned = subject.base_preset, _tuned(subject, best.params)
    assert best.datetime_complete is not None, "the best trial is complete"
    date = best.datetime_complete.date().isoformat()
    source = (
        f"sweep {subject.sweep.name}, study {subject.study} (key {subject.key}): trial {best.number} of {trials}, "
        f"{best.value:.2f} % on {best.user_attrs['tested']} validation images of {subject.info.name}; "
        f"from {base.name}, {date}"
    )
    return Preset(
        name=subject.winner_name,
        source=source,
        # Whose epochs count as published; only a preset that ships with RD3 can be reduced.
        reduces=base.reduces or (base.name if base.name in presets() else None),
        all=merged(base.all, tuned),
        same_network=_left(base.same_network, tuned),
        other_network=_left(base.other_network, tuned),
        rules=_rules_left(base.rules, tuned),
    )


def _tuned(subject: Subject, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial as a preset can state them.

    With epochs in place of ``image_steps``; hard labels reset the fields of soft ones that the base preset states.  A
    tuned loss that is the base's own has the settings that it keeps, as it takes the place of the base's in ``all``.
    """
    base, values = subject.base_preset, subject.values(params)
    resolved = subject.protocol(params)
    if values.pop("image_steps", None) is not None:
        values["epochs"] = resolved.epochs
    if "loss" in values:
        defaults = LOSSES.get(resolved.loss.name).Settings.model_fields
        settings = resolved.loss.settings.items()
        kept = {name: value for name, value in settings if name not in values and value != defaults[name].default}
        values["loss"] = {resolved.loss.name: kept} if kept else resolved.loss.name
    stated = {*base.all, *base.same_network, *base.other_network, *(name for rule in base.rules for name in rule.then)}
    return {name: value for name, value in implied_by(values).items() if name in stated} | values


def _rules_left(rules: Iterable[Rule], tuned: dict[str, Any]) -> tuple[Rule, ...]:
    """The rules of a preset without the values that are tuned."""
    return tuple(Rule(when=rule.when, then=left) for rule in rules if (left := _left(rule.then, tuned)))


def _left(values: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of values that override ``all``: those not tuned, and tuned settings of components that they set.

    A tuned loss drops the settings of the former one.  Settings are repeated as a component overrides those in ``all``.
    """
    left = unchanged_by(values, tuned)
    return left | {name: value for name, value in tuned.items() if _replaces(left, name)}


def _replaces(values: Mapping[str, Any], name: str) -> bool:
    """Whether ``values`` set the loss or the augmentation that the setting ``name`` belongs to."""
    step, dot, _setting = name.rpartition(".")
    if dot:
        return step in {Component.model_validate(each).name for each in values.get("augmentation", ())}
    if name in EvalProtocol.model_fields or "loss" not in values:
        return False
    return name in LOSSES.get(Component.model_validate(values["loss"]).name).Settings.model_fields


def check_free(folder: Path, name: str, sweep: str) -> None:
    """Raise :class:`BadValue` if a folder has a protocol of this name that is not a winner of this sweep."""
    path = folder / f"{name}.yaml"
    if path.exists() and not read_preset(path).source.startswith(f"sweep {sweep}, "):
        message = f"{path} is not a winner of sweep {sweep}, whose winner would have the name {name}."
        raise BadValue(message, "rename the sweep, or move that file")


def write_preset(preset: Preset, folder: Path, sweep: str) -> Path:
    """Write ``<name>.yaml`` to a folder of protocols; replaces an earlier winner of the sweep."""
    check_free(folder, preset.name, sweep)
    plain = preset.model_dump(mode="json")
    path = folder / f"{preset.name}.yaml"
    write_atomically(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))
    return path


@dataclass(frozen=True)
class Tested:
    """The test of one winner and of the base protocol on the same seeds; accuracies 0-100."""

    sweep: str
    params: dict[str, Any]
    validation_top1_pct: float
    recorded_at: str
    seeds: list[int]
    winner: list[float]
    """By student seed; empty until the test is complete."""
    base: list[float]
    protocol: str
    """Digest of the protocol with all defaults filled in; seeds are not part of it."""
    current: bool
    """Whether it is the winner that the sweep has now."""
    precisions: tuple[str, ...] = ()
    """Floating-point formats that ran (``bf16``, ``fp32``); several if the machines differ."""

    @property
    def difference(self) -> PairedDifference | None:
        """Winner minus base; None for a single seed or the same difference on all, or before the test is complete."""
        return single_difference(self.winner, self.base)

    def text(self) -> dict[str, str]:
        """Cells for tables."""
        return {
            "winner": _mean_std(self.winner),
            "base": _mean_std(self.base),
            "difference": self._difference_text(),
        }

    def _difference_text(self) -> str:
        if not self.winner:
            return ""
        across = f"; across {' and '.join(self.precisions)}" if len(self.precisions) > 1 else ""
        count, got = len(self.winner), self.difference
        if got is None:
            seeds = "1 seed" if count == 1 else f"the same for all {count} student seeds"
            text = f"{mean(self.winner) - mean(self.base):+.2f} ({seeds}, no interval{across})"
        else:
            interval = f"{got.mean:+.2f} [{got.low:.2f}, {got.high:.2f}]"
            text = f"{interval}, p {got.p_value:.2g} ({got.n} student seeds{across})"
        return text.replace("-", "−")


def _mean_std(values: list[float]) -> str:
    if not values:
        return "not tested yet"
    deviation = std(values)
    return f"{mean(values):.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "") + f" ({len(values)})"


class WinnerTest(NamedTuple):
    """The test of a winner: its evaluations and those of the base protocol, by student seed."""

    winner: list[EvaluationRecipe]
    base: list[EvaluationRecipe]

    @property
    def protocol(self) -> str:
        """Digest of the winning protocol, independent of student seeds."""
        return digest(self.winner[0].protocol.model_dump(mode="json"))[:32]

    @property
    def target(self) -> str:
        """Digest of what a sweep is tested on (set, data, student), so that tests by other sweeps are counted too.

        The teacher, which hard labels do not have, is compared as :func:`recorded_tests` reads the tests.
        """
        first = self.base[0]
        normalisation = first.normalisation.model_dump()
        return digest([first.set, first.student, first.data.model_dump(mode="json"), normalisation])[:32]

    @property
    def teachers(self) -> list[Key]:
        """Keys of the teachers of the labels; empty if both protocols have hard labels, or a set's own."""
        return sorted({key for recipe in (*self.winner, *self.base) for key in recipe.teachers})


def winner_test(subject: Subject, expansion: Expansion) -> WinnerTest:
    """The test of a method's winner; ``expansion``: that of the sweep's ``test_grid`` for this method alone."""
    by_protocol: dict[str, list[EvaluationRecipe]] = {}
    for cell in expansion.cells:
        by_protocol.setdefault(cell.protocol, []).append(expansion.evaluation_of(cell))
    return WinnerTest(by_protocol[subject.winner_name], by_protocol[subject.sweep.protocol.name])


def winners_of(tests: Iterable[Tested]) -> int:
    """Number of distinct winners that were tested."""
    return len({test.protocol for test in tests})


def record(subject: Subject, best: FrozenTrial, test: WinnerTest, records: SweepRecords) -> None:
    """Record the test before it runs, so that repeated tests on one target can be counted."""
    records.record_test(
        test.target,
        {
            "sweep": subject.sweep.name,
            "key": subject.key,
            "method": subject.label,
            "params": best.params,
            "validation_top1_pct": best.value,
            "protocol": test.protocol,
            "teachers": test.teachers,
            "evaluations": [recipe.key for recipe in test.winner],
            "base": [recipe.key for recipe in test.base],
            "seeds": [recipe.student_seed for recipe in test.winner],
            "recorded_at": now(),
        },
    )


def recorded_tests(
    current: WinnerTest, records: SweepRecords, find: Callable[[str, Key], Entry | None]
) -> list[Tested]:
    """Every recorded test of the target, with its result, but those with labels of other teachers."""
    found = []
    for test in records.tests(current.target):
        named = test.get("teachers")  # early records lack them: each is listed under every teacher
        if named and current.teachers and named != current.teachers:
            continue
        # Early records lack the protocol, too: each counts as a winner of its own.
        protocol = test.get("protocol", test["evaluations"][0])
        sides = [[find("evaluation", key) for key in test[side]] for side in ("evaluations", "base")]
        entries = [entry for side in sides for entry in side if entry is not None]
        complete = len(entries) == sum(map(len, sides))
        winner, base = ([entry.result["top1_pct"] for entry in side if complete and entry] for side in sides)
        precisions = sorted({entry.result["ran_precision"] for entry in entries if "ran_precision" in entry.result})
        found.append(
            Tested(
                test["sweep"], test["params"], test["validation_top1_pct"], test["recorded_at"],
                test["seeds"], winner, base, protocol, protocol == current.protocol, tuple(precisions),
            )
        )  # fmt: skip
    return found
