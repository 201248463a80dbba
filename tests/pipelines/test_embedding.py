"""t-SNE of features: groups embedded together, and the real path from sets and a teacher to a chart."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from pipelines.embedding import Points, embedded


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
