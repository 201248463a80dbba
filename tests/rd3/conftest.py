"""Data that a network of known weights classifies, so that accuracies have a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rd3.datasets import Dataset, DatasetInfo, Split
from rd3.evaluation import posteval, teaching
from rd3.models import NETWORKS, Network
from rd3.recipe import Normalisation
from rd3.seeding import derive

OWN = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
COUNTS = {"train": 400, "fit": 320, "validation": 80, "test": 200}


class NearestColour(nn.Module):
    """Logits by the distance of an image's mean colour to those of the classes; no batch norm, one linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.fc(pixels.mean((2, 3)))


class Colours(Dataset):
    """Images of one colour each, drawn around that of their class."""

    def __init__(self, num_classes: int = 4, class_ids: Sequence[str] = ()):
        ids = tuple(class_ids) or tuple(f"colour{label}" for label in range(num_classes))
        self.info = DatasetInfo(
            name="colours", source="made up", class_ids=ids, class_names=tuple(name.upper() for name in ids),
            resolution=32, test_resize=32, factor=1, normalisation=OWN, train_count=400, test_count=200,
            train_per_class=400 // num_classes,
        )  # fmt: skip
        corners = np.stack(np.meshgrid(*[[0.15, 0.5, 0.85]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        self.means = corners[np.linspace(0, 26, num_classes).round().astype(int)]
        """(C, 3) colours of the classes, of pixels in [0, 1]."""

    @property
    def fingerprint(self) -> str:
        return "c" * 64

    def labels(self, split: Split) -> np.ndarray:
        return np.arange(COUNTS[split], dtype=np.int64) % self.info.num_classes

    def colours(self, split: Split) -> np.ndarray:
        """(N, 3) uint8."""
        stream = np.random.default_rng(derive(0, split))
        drawn = self.means[self.labels(split)] + stream.normal(0, 0.05, (COUNTS[split], 3))
        return (drawn.clip(0, 1) * 255).round().astype(np.uint8)

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        colours = torch.from_numpy(self.colours(split)[list(indices)])
        return colours.view(-1, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()

    def original(self, split: Split, index: int) -> torch.Tensor:
        return self.images(split, [index])[0]

    def weights(self, constants: Normalisation) -> dict[str, torch.Tensor]:
        """Weights with which the nearest colour wins, on pixels normalised with the constants."""
        mean, std = np.array(constants.mean), np.array(constants.std)
        centres = (self.means - mean) / std
        # The distance is measured in pixels of [0, 1], so that it does not depend on the constants.
        scaled = centres * std**2 * 200
        bias = -(scaled * centres).sum(1) / 2
        return {"fc.weight": torch.from_numpy(scaled).float(), "fc.bias": torch.from_numpy(bias).float()}

    def network(self, constants: Normalisation) -> NearestColour:
        network = NearestColour(self.info.num_classes)
        network.load_state_dict(self.weights(constants))
        return network

    def saved(self, path: Path, constants: Normalisation = OWN, **changed: torch.Tensor) -> Path:
        """A file of the weights, some of them changed: ``fc_weight=...``."""
        named = {name.replace("_", "."): value.contiguous() for name, value in changed.items()}
        save_file({**self.weights(constants), **named}, path)
        return path

    def top1_pct(
        self, split: Split, trained: Normalisation, fed: Normalisation, order: Sequence[int] | None = None
    ) -> float:
        """Accuracy by NumPy alone: of weights for ``trained`` on pixels normalised with ``fed``."""
        values = (self.colours(split) / 255 - np.array(fed.mean)) / np.array(fed.std)
        weights = {name: value.double().numpy() for name, value in self.weights(trained).items()}
        logits = values @ weights["fc.weight"].T + weights["fc.bias"]
        if order is not None:
            logits = logits[:, list(order)]
        return 100 * float((logits.argmax(1) == self.labels(split)).mean())


@pytest.fixture
def nearest_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network ``nearest`` can be named like any other."""
    notes = {32: "one linear layer"}
    nearest = Network("nearest", "the nearest mean colour", notes, lambda classes, _side: NearestColour(classes))
    NETWORKS.names()
    monkeypatch.setitem(NETWORKS._things, "nearest", nearest)


@pytest.fixture
def colours(nearest_colour: None) -> type[Colours]:
    return Colours


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that frozen teachers were given, pass by pass."""
    counted: list[int] = []
    freeze = teaching.frozen

    def counting(*words):
        own = freeze(*words)
        own.register_forward_pre_hook(lambda _network, inputs: counted.append(len(inputs[0])))
        return own

    monkeypatch.setattr(posteval, "frozen", counting)
    return counted
