"""Post-evaluation, some steps at a time: :func:`rd3.evaluation.posteval.train_pack` without its test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rd3.datasets import Dataset, DatasetInfo
from rd3.device import repeatable_kernels, resolve_precision
from rd3.evaluation.cached_logits import CachedLogits
from rd3.evaluation.packing import Views
from rd3.evaluation.posteval import _Group
from rd3.evaluation.result import EvalResult
from rd3.evaluation.student import Evaluation
from rd3.evaluation.teaching import AHEAD, AHEAD_ELSEWHERE
from rd3.models import NormalisedNetwork, build_network
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe
from rd3.seeding import generator
from rd3.testing import ToyDataset
from rd3.values import digest

EPOCHS = 100_000
"""More than any measurement reaches, so that no test after the last epoch counts as training time."""


def untrained(info: DatasetInfo, network: str, number: int = 0) -> NormalisedNetwork:
    """A network with random weights, which depend on ``number``."""
    stream = generator(number, "benchmark")
    return build_network(network, info.num_classes, info.resolution, info.normalisation, stream)


def memory_format(network: nn.Module) -> str:
    """``channels last`` or ``NCHW``, by its weights; those of 1x1 and depthwise convolutions are contiguous in both."""
    last = any(weight.ndim == 4 and not weight.is_contiguous() for weight in network.parameters())
    return "channels last" if last else "NCHW"


class Subject:
    """A set (by default random images of ``side`` pixels), an untrained teacher, and recipes of evaluations."""

    def __init__(self, side: int, network: str, batch: int = 50, images: int = 500, dataset: Dataset | None = None):
        """``images``: size of the set, in equal parts of ten classes."""
        toys = ToyDataset(classes=10, per_class=images // 10, side=side, factor=2 if side == 224 else 1)
        self.dataset = dataset or toys
        self.info, self.network, self.batch = self.dataset.info, network, batch
        self.images = self.dataset.images("train", list(range(images)))
        self.labels = torch.tensor(self.dataset.labels("train")[:images])
        self.teacher = untrained(self.info, network).eval().requires_grad_(False)

    def recipe(self, student_seed: int = 0, student: str | None = None, **fields: Any) -> EvaluationRecipe:
        """An evaluation under the protocol ``rd3`` with these fields changed."""
        student = student or self.network
        return EvaluationRecipe(
            set=digest("benchmark's set"),
            teachers=(digest("benchmark's teacher"),),
            protocol=resolve_protocol(
                "rd3",
                factor=self.info.factor,
                same_network=student == self.network,
                set_size=len(self.labels),
                overrides={"batch_size": self.batch, "epochs": EPOCHS, **fields},
            ),
            student=student,
            student_seed=student_seed,
            data=Data(name=self.info.name, fingerprint=self.dataset.fingerprint),
            classes=self.info.classes,
            resolution=self.info.resolution,
            normalisation=self.info.normalisation,
        )


def labelled_at_once(device: torch.device, batch: int) -> int:
    """Number of batches that the teacher labels at once."""
    return max(1, AHEAD.get(device.type, AHEAD_ELSEWHERE) // batch)


class Students:
    """Students that train in one process; those with equal views share pixels and teacher logits."""

    def __init__(
        self,
        subject: Subject,
        recipes: Sequence[EvaluationRecipe],
        device: torch.device,
        cached: CachedLogits | None = None,
    ):
        """``cached``: cached logits, which are closed on leaving the context."""
        self.precision = resolve_precision(device, recipes[0].protocol.precision)
        self.taught = 0
        """Images that the teacher has labelled."""
        self.chunk = labelled_at_once(device, recipes[0].protocol.batch_size)
        self._teachers: dict[Any, nn.Module] = {}
        by_views: dict[str, list[Evaluation]] = {}
        for recipe in recipes:
            one = Evaluation(recipe, subject.images, subject.labels, [subject.teacher], cached_logits=cached)
            by_views.setdefault(Views.of(recipe).key, []).append(one)
        self._ended: dict[int, EvalResult | Exception] = {}
        self._groups = [
            _Group(evaluations, subject.dataset, device, self._teachers, self._ended)
            for evaluations in by_views.values()
        ]
        for group in self._groups:
            for teacher in group._views._teachers:  # also where cached logits spare it, to count images despite them
                group._views._frozen_copy(teacher)
        for teacher in self._teachers.values():
            teacher.register_forward_pre_hook(self._count)

    def __enter__(self) -> Students:
        return self

    def __exit__(self, *_exc: object) -> None:
        for group in self._groups:
            group.close()

    def compile(self) -> None:
        """Let torch compile teacher and students, at their first step."""
        students = (student.network for group in self._groups for student in group._students.values())
        for network in (*self._teachers.values(), *students):
            network.compile()

    def label_all(self) -> None:
        """Label all batches without training."""
        with repeatable_kernels():
            for group in self._groups:
                for _batch in group._batches:
                    pass

    def _count(self, _teacher: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.taught += len(inputs[0])

    def work(self) -> int:
        """Train on all batches that the teacher labels at once; returns the number of steps of each student."""
        with repeatable_kernels():
            for _step in range(self.chunk):
                for group in self._groups:
                    group.advance()
        assert not self._ended, "a student has ended before its measurement"
        return self.chunk
