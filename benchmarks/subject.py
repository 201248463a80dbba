"""The evaluations of the overhead benchmark: random IPC 10 on the digits, resnet18_w16 as teacher and student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.byhand import set_of
from pipelines.grid.catalog import Catalog
from pipelines.settings import Session
from rd3.datasets import dataset_info
from rd3.protocol import resolve_protocol
from rd3.recipe import EvaluationRecipe, Recipe
from tracking.place import Place


class Subject:
    """Recipes, in a session with all its files below ``home``."""

    def __init__(self, home: Path):
        place = Place(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"), home)
        self.session = Session(place.tracking_uri, place.artifacts, place.home)
        self.info = dataset_info("digits", self.session.roots)
        catalog = Catalog.of(self.session)
        self.teacher = set_of("rded", "digits", 1, "resnet18_w16", 0, {}, catalog)[0]
        self.made = set_of("random", "digits", 10, None, 0, {}, catalog)[0]

    @property
    def parents(self) -> list[Recipe]:
        return [self.teacher, self.made]

    def evaluation(self, preset: str, seed: int, **fields: Any) -> EvaluationRecipe:
        """One evaluation under a preset, with some protocol fields changed."""
        protocol = resolve_protocol(preset, factor=self.info.factor, same_network=True, set_size=100, overrides=fields)
        return EvaluationRecipe(
            set=self.made.key,
            teachers=(self.teacher.key,),
            protocol=protocol,
            student="resnet18_w16",
            student_seed=seed,
            data=self.made.data,
            classes=self.info.classes,
            resolution=self.info.resolution,
            normalisation=self.info.normalisation,
        )
