"""A grid of seconds on digits, and a driver for it: ``python tiny_grid.py HOME [EVALUATIONS] [EPOCHS]``."""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.engine.execute import Outcome, execute
from pipelines.engine.workers import Workers
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import plan_session
from pipelines.grid.values import Grid
from pipelines.settings import Session
from rd3.datasets import Roots, dataset_info, open_dataset
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, TeacherRecipe, TeacherTraining
from tracking.ledger.ledger import Ledger

NETWORK = "resnet18_w16"


def session_in(home: Path) -> Session:
    """Everything below one folder."""
    return Session(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"), home)


def quick_teacher(roots: Roots) -> TeacherRecipe:
    """A teacher of one epoch on digits."""
    info = dataset_info("digits", roots)
    training = TeacherTraining(
        epochs=1, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, crop="pad", flip=False
    )
    return TeacherRecipe(
        data=Data(name="digits", fingerprint=open_dataset("digits", roots).fingerprint),
        classes=info.classes,
        resolution=info.resolution,
        network=NETWORK,
        normalisation=info.normalisation,
        training=training,
        precision="fp32",
        seed=0,
    )


def name_quick_teacher(artifacts: str, home: Path) -> None:
    """Make it the teacher ``quick`` of digits in a ledger, for grids that name it."""
    Ledger(artifacts).set_role("digits", "quick", quick_teacher(Roots(None, home)).model_dump(mode="json"))


def tiny(
    session: Session,
    *,
    evaluations: int = 2,
    epochs: int = 3,
    sets: int = 2,
    rates: int = 1,
    timing: str = "shared",
) -> Expansion:
    """A teacher of one epoch, random sets of one image a class, and evaluations of each by student seed.

    ``rates``: protocols that differ in the learning rate alone, so that their views are equal.
    """
    info = dataset_info("digits", session.roots)
    teacher = quick_teacher(session.roots)
    common = {"data": teacher.data, "classes": info.classes, "resolution": info.resolution}
    protocols = [
        resolve_protocol(
            "rd3-reduced",
            factor=info.factor,
            same_network=True,
            set_size=info.num_classes,
            overrides={"epochs": epochs, "precision": "fp32", "lr": 0.001 * number},
        )
        for number in range(1, rates + 1)
    ]
    recipes = [teacher]
    for seed in range(sets):
        recipes.append(SetRecipe(**common, method="random", version=1, settings={}, ipc=1, set_seed=seed))
        recipes += [
            EvaluationRecipe(
                **common,
                set=recipes[-1].key,
                teachers=(teacher.key,),
                protocol=protocol,
                student=NETWORK,
                student_seed=number,
                normalisation=info.normalisation,
            )
            for number in range(evaluations)
            for protocol in protocols
        ]
    return Expansion(
        recipes={recipe.key: recipe for recipe in recipes},
        grid=Grid(name="tiny", parts=(), timing=timing, text="name: tiny\n"),
        infos={"digits": info},
    )


def run(home: Path, *, view: bool = False, workers: Workers | None = None, **shape: int | str) -> Outcome:
    """Plan and execute the grid in a store of its own."""
    session = session_in(home)
    expansion = tiny(session, **shape)
    Ledger(session.artifacts)
    return execute(expansion, plan_session(expansion, session), session, view=view, workers=workers)


if __name__ == "__main__":
    home, evaluations, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    raise SystemExit(run(home, view=True, evaluations=evaluations, epochs=epochs).exit_code)
