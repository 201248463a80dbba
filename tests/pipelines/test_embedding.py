"""t-SNE of features: groups embedded together, and the real path from sets and a teacher to a chart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from pipelines import Workspace, embedding
from pipelines.embedding import Points, embedded
from rd3.models import NormalisedNetwork

Run = Callable[..., tuple[int, str, str]]
GRID = {
    "name": "maps",
    "methods": ["random"],
    "datasets": ["digits"],
    "ipc": [2],
    "teacher": "resnet18_w16",
    "students": ["convnet_w32"],
    "protocols": [{"rd3-reduced": {"epochs": 1, "labels": "hard"}}],
    "student_seeds": [0],
    "embedding": True,
}


def clusters(rng: np.random.Generator, each: int) -> Points:
    """Three clusters on orthogonal axes, far apart."""
    labels = np.repeat(np.arange(3), each)
    return Points(10 * np.eye(8)[labels] + rng.normal(size=(3 * each, 8)), labels)


def test_groups_share_one_map_in_which_classes_stay_neighbours():
    rng = np.random.default_rng(0)
    found = embedded({"real": clusters(rng, 30), "rded": clusters(rng, 3)}, perplexity=10)
    assert {name: points.features.shape for name, points in found.items()} == {"real": (90, 2), "rded": (9, 2)}
    real = KNeighborsClassifier(3).fit(found["real"].features, found["real"].labels)
    assert real.score(found["rded"].features, found["rded"].labels) == 1.0


def test_few_images_lower_the_perplexity_and_a_seed_repeats_the_map():
    few = {"real": clusters(np.random.default_rng(1), 2)}
    first, again = embedded(few), embedded(few)
    assert np.array_equal(first["real"].features, again["real"].features)


@pytest.fixture
def maps(rd3: Run, home: Path, tmp_path: Path, empty_database: Path) -> Path:
    """The file of a grid that asks for maps, run in a home without a teacher."""
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    file = tmp_path / "maps.yaml"
    file.write_text(yaml.safe_dump(GRID))
    assert rd3("run", file, "--local")[0] == 0
    return file


def test_a_report_maps_the_features_that_the_teacher_has_before_its_last_layer(
    rd3: Run, home: Path, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _err = rd3("report", maps)
    said = [line for line in out.splitlines() if line.startswith("Features of digits, IPC 2: ")]
    assert code == 0 and len(said) == 1, "without a teacher, one line says what is missing"
    assert "Not drawn: The ledger has no teacher resnet18_w16 of digits. Fix: rd3 teacher train digits" in said[0]
    assert said[0].partition(": ")[2].split(" Fix")[0] in (home / "reports" / "maps" / "report.html").read_text()

    torch.manual_seed(0)
    hidden = nn.Linear(3 * 32 * 32, 48)
    network = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(48, 10)).eval()
    normalisation = Workspace().dataset("digits").info.normalisation
    teacher = NormalisedNetwork(network, normalisation)
    monkeypatch.setattr(Workspace, "teacher", lambda _work, _dataset, _role: teacher)
    seen: list[dict[str, Points]] = []
    placed: list[dict[str, Points]] = []

    def watched(groups: dict[str, Points]) -> dict[str, Points]:
        seen.append(groups)
        placed.append(embedded(groups))
        return placed[-1]

    monkeypatch.setattr(embedding, "embedded", watched)
    code, out, _err = rd3("report", maps)
    assert code == 0 and "Not drawn" not in out
    page = (home / "reports" / "maps" / "report.html").read_text()
    assert "Features of digits, IPC 2" in page and "Not drawn" not in page
    assert list((home / "reports" / "maps" / "charts").glob("*-features-of-digits-ipc-2.svg"))

    # a plain loop over the set's images, in NumPy, from the pixels to the layer before the last
    [groups] = seen
    work = Workspace()
    [key] = work.session.ledger.keys("set")
    made = work.open_set(key)
    weight, bias = hidden.weight.detach().double().numpy(), hidden.bias.detach().double().numpy()
    mean, std = (np.asarray(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
    for place, image in enumerate(made.images.numpy()):
        pixels = ((image / 255.0 - mean) / std).ravel()
        assert np.allclose(groups["random"].features[place], np.maximum(weight @ pixels + bias, 0), atol=1e-3)
    assert groups["random"].labels.tolist() == [*range(10)] * 2
    counts = np.bincount(groups["real"].labels)
    digits = load_digits().target
    assert counts.tolist() == [min(100, int((digits == label).sum())) for label in range(10)]

    # random images are real ones: each lies in the map among the real images of its own class
    real = KNeighborsClassifier(5).fit(*placed[0]["real"])
    assert real.score(*placed[0]["random"]) >= 0.9


def test_maps_change_no_key_of_a_grid(home: Path) -> None:
    work = Workspace()
    plain = {key: value for key, value in GRID.items() if key != "embedding"}
    with_maps, without = (work.grid(grid).expansion for grid in (GRID, plain))
    assert with_maps.source_grid.key == without.source_grid.key and list(with_maps.recipes) == list(without.recipes)
