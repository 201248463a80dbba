"""Run a queue on Ray Tune: one experiment, whose searcher hands out recipes when their parents are done.

Tune's own storage and checkpoints are scratch: all results are in the ledger.
"""

from __future__ import annotations

import logging
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from pipelines.engine.driver import Driver, StopDriver
from pipelines.engine.trial import run_trial


class DriverSearcher(Searcher):
    """A searcher that asks the driver for the next trial; stateless, as Tune pickles it in checkpoints."""

    def __init__(self, driver: Driver):
        super().__init__()
        self.driver = driver

    def suggest(  # type: ignore[override]  # Ray documents FINISHED, its annotation leaves it out
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        config = self.driver.next_config(trial_id)
        if config is None and (self.driver.queue.finished or self.driver.leaving):
            return Searcher.FINISHED  # for None without a running trial, Tune would wait for minutes
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.driver.on_report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not error:
            self.driver.on_end(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Watch(tune.Callback):
    """A callback that reports process deaths to the driver, and stops Tune when the driver must stop."""

    def __init__(self, driver: Driver):
        self.driver = driver

    def on_step_begin(self, iteration: int, trials: list[Any], **_info: Any) -> None:
        if self.driver.leaving:
            raise StopDriver

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_info: Any) -> None:
        self.driver.on_death(trial.trial_id, f"{type(trial.get_pickled_error()).__name__} {trial.get_error() or ''}")

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])


_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


def run_queue(driver: Driver, home: Path) -> None:
    """Run Tune until the driver's queue is finished or the driver is leaving, in which case it may raise StopDriver."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Otherwise Tune passes the driver's S3 keys to every trial, visible in command lines and logs of Ray.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_S3_KEYS)
    scratch, name = home / "ray", uuid.uuid4().hex[:8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tune.Tuner(
                tune.with_resources(run_trial, _resources),
                tune_config=tune.TuneConfig(
                    search_alg=DriverSearcher(driver),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[Watch(driver)],
                    # The driver handles dead processes: Tune does not retry those with reused actors.
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch / name, ignore_errors=True)


def _name(trial: Any) -> str:
    return str(trial.trial_id)
