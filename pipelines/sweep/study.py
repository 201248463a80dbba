"""The study of one method: Optuna proposes points in batches; a study is always a prefix of a fixed trial sequence.

A point is one value for each tuned field of the protocol; a trial trains students with a point and scores them on
validation images.  The sequence depends only on the sweep's file.  Trial ``k`` is proposed from the finished batches
before its own and the points before it in its batch, by a sampler whose seed is derived from ``k``; it is pruned by
comparison with the finished batches.  Nothing depends on the speed of workers.  A batch is written when all of its
trials have ended, each trial atomically and in order: a killed driver leaves no trial RUNNING, and the next one
proposes the same points again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipelines.sweep.values import Dimension, Sweep
from rd3.seeding import derive

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STARTUP_TRIALS = 5
"""Number of complete trials before the median rule starts to prune."""


@dataclass(frozen=True)
class Ended:
    """The result of one point."""

    state: str
    """``COMPLETE`` or ``PRUNED``."""
    top1_pct: float | None
    """On validation images after the last epoch, mean over student seeds; None for a pruned trial."""
    curve: dict[int, float] = field(default_factory=dict)
    """Epoch to top-1 accuracy (%) of the first student seed, up to where it stopped."""
    rungs: dict[str, float] = field(default_factory=dict)
    """What Optuna's successive-halving pruner stores with a trial: its value at each rung that it reached."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Keys of the evaluations, scores by student seed, reason of an early stop."""


def quiet_optuna() -> None:
    """Silence Optuna's log and its warnings about long-stable features marked experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def distributions(space: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """The space as Optuna distributions; the type of a field decides between integers and floats."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for one in space:
        if one.choices:
            found[one.field] = CategoricalDistribution(one.choices)
            continue
        low, high = one.choices_or_ends
        if one.integer:
            found[one.field] = IntDistribution(int(low), int(high), log=one.log, step=int(one.step or 1))
        else:
            found[one.field] = FloatDistribution(float(low), float(high), log=one.log, step=one.step)
    return found


def _optuna() -> Any:
    import optuna

    return optuna


SAMPLERS: dict[str, Callable[[Sweep, int], BaseSampler]] = {
    # The liar takes the earlier points of the same batch, which have no scores yet, for poor ones.
    "tpe": lambda _sweep, seed: _optuna().samplers.TPESampler(seed=seed, constant_liar=True),
    "random": lambda _sweep, seed: _optuna().samplers.RandomSampler(seed=seed),
    # The seed shuffles the points, so it must be the same for all trials.
    "grid": lambda sweep, _seed: _optuna().samplers.GridSampler(
        {one.field: list(one.values() or ()) for one in sweep.space}, seed=sweep.seed
    ),
}
PRUNERS: dict[str, Callable[[Pruning], BasePruner]] = {
    "median": lambda _pruning: _optuna().pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    "successive_halving": lambda pruning: _optuna().pruners.SuccessiveHalvingPruner(
        min_resource=pruning.every, reduction_factor=3
    ),
    "hyperband": lambda pruning: _optuna().pruners.HyperbandPruner(
        min_resource=pruning.every, max_resource=pruning.longest, reduction_factor=3
    ),
    "none": lambda _pruning: _optuna().pruners.NopPruner(),
}


@dataclass(frozen=True)
class Pruning:
    """The pruning rule; plain data that is sent to workers."""

    rule: str
    """A name in :data:`PRUNERS`."""
    every: int
    """Epochs between validation steps."""
    longest: int
    """Epochs of the longest trial."""


class RunningTrial:
    """A running trial, compared with the finished batches before its own (``before``, trials 0, 1, 2 ...)."""

    def __init__(self, study_name: str, number: int, before: Sequence[FrozenTrial], pruning: Pruning):
        from optuna.trial import TrialState, create_trial

        quiet_optuna()
        self._study = _snapshot(study_name, before)
        while len(self._study.get_trials(deepcopy=False)) < number:  # earlier trials of its own batch, without results
            self._study.add_trial(create_trial(state=TrialState.RUNNING))
        self._study.pruner = PRUNERS[pruning.rule](pruning)
        self._trial = self._study.ask()
        self.curve: dict[int, float] = {}

    def report(self, epoch: int, top1_pct: float) -> bool:
        """Report an accuracy; True if the trial should be pruned."""
        self.curve[epoch] = top1_pct
        self._trial.report(top1_pct, epoch)
        return self._trial.should_prune()

    @property
    def rungs(self) -> dict[str, float]:
        """Attributes stored by a successive-halving pruner."""
        own = self._study.get_trials(deepcopy=False)[self._trial.number]
        return {name: value for name, value in own.system_attrs.items() if name.startswith("completed_rung")}


def _snapshot(name: str, trials: Sequence[FrozenTrial]) -> Study:
    """An in-memory study with these trials, renumbered from 0."""
    import optuna

    study = optuna.create_study(study_name=name, direction="maximize", storage=optuna.storages.InMemoryStorage())
    study.add_trials(trials)
    return study


class Tuning:
    """The study of one method, in a storage written only by this process."""

    def __init__(self, sweep: Sweep, name: str, storage: BaseStorage):
        import optuna

        quiet_optuna()
        self.sweep, self.name = sweep, name
        self.study = optuna.create_study(study_name=name, direction="maximize", storage=storage, load_if_exists=True)
        self.space = distributions(sweep.space)

    def trials(self) -> list[FrozenTrial]:
        """All finished trials, in order."""
        return self.study.get_trials(deepcopy=False)

    def before(self, number: int) -> list[FrozenTrial]:
        """The trials of the finished batches before that of a trial."""
        from optuna.trial import create_trial

        return [
            create_trial(
                state=trial.state,
                value=trial.value,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                system_attrs=trial.user_attrs.get("rungs", {}),
            )
            for trial in self.trials()[: number - number % self.sweep.batch]
        ]

    def next_batch(self) -> dict[int, dict[str, Any]]:
        """Number to point of the next trials; empty if the study is complete."""
        done = self.trials()
        first = len(done) - len(done) % self.sweep.batch
        numbers = range(first, min(first + self.sweep.batch, self.sweep.trials))
        points: list[dict[str, Any]] = []
        for number in numbers:
            points.append(dict(done[number].params) if number < len(done) else self._propose(number, points))
        return {number: point for number, point in zip(numbers, points, strict=True) if number >= len(done)}

    def _propose(self, number: int, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The point of a trial; ``earlier``: points of its own batch."""
        from optuna.trial import TrialState, create_trial

        study = _snapshot(self.name, self.before(number))
        for params in earlier:
            study.add_trial(create_trial(state=TrialState.RUNNING, params=dict(params), distributions=self.space))
        seed = derive(self.sweep.seed, "sweep", number) % 2**32
        study.sampler = SAMPLERS[self.sweep.sampler](self.sweep, seed)
        return dict(study.ask(fixed_distributions=self.space).params)

    def tell(self, number: int, point: Mapping[str, Any], ended: Ended, began: datetime) -> None:
        """Write the next trial atomically."""
        from optuna.trial import TrialState, create_trial

        assert number == len(self.trials()), "trials are written in order"
        state = TrialState[ended.state]
        last = ended.curve[max(ended.curve)] if ended.curve else None
        trial = create_trial(
            state=state,
            value=ended.top1_pct if state == TrialState.COMPLETE else last,
            params=dict(point),
            distributions=self.space,
            intermediate_values=dict(ended.curve),
            user_attrs={**ended.facts, **({"rungs": ended.rungs} if ended.rungs else {})},
        )
        trial.datetime_start = began
        self.study.add_trial(trial)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best validation accuracy; the first in a tie."""
        complete = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)
