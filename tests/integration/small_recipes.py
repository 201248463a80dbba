"""Recipes that are quickly written; nobody has to be able to make them."""

from __future__ import annotations

from collections.abc import Iterable

from rd3.recipe import Data, Normalisation, SetRecipe, TeacherRecipe, TeacherTraining

PLAIN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
COMMON = {"data": Data(name="digits", fingerprint="f" * 32), "classes": "c" * 64, "resolution": 32}


def teacher(seed: int = 0, epochs: int = 4) -> TeacherRecipe:
    training = TeacherTraining(epochs=epochs, batch_size=128, lr=0.1, momentum=0.9, weight_decay=0.0, crop="none")
    return TeacherRecipe(
        **COMMON, network="resnet18_w16", normalisation=PLAIN, training=training, precision="fp32", seed=seed
    )


def a_set(seed: int = 0, *, ipc: int = 1, teachers: tuple[str, ...] = (), init: str | None = None) -> SetRecipe:
    return SetRecipe(
        **COMMON, method="random", version=1, settings={}, ipc=ipc, set_seed=seed, teachers=teachers, init=init
    )


class Stub:
    """A recipe as queue and driver see it: kind, key and parents as (kind, key)."""

    def __init__(self, kind: str, key: str, *parents: tuple[str, str]):
        self.kind, self.key, self._parents = kind, key, parents

    def parents(self) -> Iterable[tuple[str, str]]:
        return self._parents

    def label(self) -> str:
        return f"{self.kind} {self.key}"
