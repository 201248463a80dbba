"""A sweep on a cluster that loses a node and then its driver: the trials asked for, each once, as in peace."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbed import Disturbed
from swept import training, trials

from tracking.runs.runs import Tracker
from tracking.runs.sweeps import EXPERIMENT

pytestmark = [pytest.mark.platform, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

TRIALS = 8
SWEEP = f"""
name: cluster
methods: [random]
dataset: digits
ipc: 5
teacher: resnet18_w16
protocol: {{rd3-reduced: {{epochs: 24, labels: hard, precision: fp32}}}}
space:
  lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}
  batch_size: [10, 25, 50]
trials: {TRIALS}
batch: 4
validate_epochs: 4
test: {{student_seeds: [0]}}
"""


class Swept(Disturbed):
    """Drivers of a sweep."""

    verb = "sweep"

    def training(self) -> list[int]:
        return training(self.home)

    def trials(self) -> list[tuple[int, str, dict[str, Any], float | None]]:
        """Number, state, point and accuracy on validation images of what is in the study."""
        return [(trial.number, trial.state.name, trial.params, trial.value) for trial in trials(self.home)]

    def runs(self) -> list[tuple[str, str]]:
        """Kind and status of every run that this sweep has in MLflow."""
        with self.environment():
            tracker = Tracker(self.place)
            found = tracker.search([tracker.experiment(EXPERIMENT)], {"rd3.ledger": self.place.artifacts})
            return sorted((run.data.tags["rd3.kind"], run.info.status) for run in found)


@pytest.fixture
def swept(stack: Any, tmp_path: Path) -> Iterator[list[Swept]]:
    """A sweep in peace, and another to disturb."""
    file = tmp_path / "cluster.yaml"
    file.write_text(SWEEP)
    made = [Swept(stack.env, file, tmp_path / name, f"sweep-{name}") for name in ("peace", "rough")]
    yield made
    for run in made:
        run.close()
    stack.do("start")


def test_a_sweep_loses_a_node_and_its_driver(stack: Any, swept: list[Swept]):
    peace, rough = swept
    peace.finish()
    driver = rough.start()
    rough.until(rough.training)
    stack.do("kill", "ray-worker")
    stack.do("start", "ray-worker")
    rough.until(lambda: TRIALS // 2 <= len(rough.trials()) < TRIALS and rough.training())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(rough.trials()) < TRIALS
    rough.finish()
    assert rough.trials() == peace.trials()
    assert [number for number, *_rest in rough.trials()] == list(range(TRIALS))
    assert {state for _number, state, *_rest in rough.trials()} <= {"COMPLETE", "PRUNED"}
    assert rough.runs() == peace.runs() == [("sweep", "FINISHED")] + [("sweep trial", "FINISHED")] * TRIALS
    assert rough.correct() == peace.correct()
