"""Herding: real images whose mean feature follows that of their class."""

from __future__ import annotations

import numpy as np

from rd3.methods import register_method
from rd3.methods._coreset import FeatureCoreset


@register_method("herding", version=1)
class Herding(FeatureCoreset):
    """Real images, selected one by one so that the mean of their features stays closest to that of their class.

    Features are the inputs of the teacher's last linear layer, divided by their Euclidean norm.  Image k is the one,
    among those not yet selected, with which the mean of the k + 1 selected features is nearest to the mean of all
    features of the class.  Of images that are equally near, the first of the dataset is selected.

    Source: Welling, "Herding Dynamical Weights to Learn", ICML 2009, in the form of Rebuffi et al., "iCaRL: Incremental
    Classifier and Representation Learning", CVPR 2017, Algorithm 4.

    Deviations: the features are those of a teacher trained on the whole dataset (iCaRL: of the network that learns);
    they are of the image alone (iCaRL's code averages the features of the image and of its mirror image); an image is
    selected at most once (in iCaRL's code an image that wins again is skipped but changes what follows).
    """

    def select(self, features: np.ndarray, wanted: int) -> list[int]:
        return herd(unit_rows(features), wanted)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """(n, D) rows divided by their Euclidean norm; rows of zeros stay."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def herd(features: np.ndarray, wanted: int) -> list[int]:
    """Rows of (n, D) float64 selected by herding, in order.

    The squared distance between the mean of k selected rows and that of all is ``|k * mean - total - row|^2 / k^2``,
    where ``total`` is the sum of the first k - 1; only the terms that depend on ``row`` are computed.
    """
    mean, half_squares = features.mean(axis=0), (features**2).sum(axis=1) / 2
    total, free, chosen = np.zeros_like(mean), np.ones(len(features), dtype=bool), list[int]()
    for k in range(1, wanted + 1):
        nearness = features @ (k * mean - total) - half_squares
        best = int(np.where(free, nearness, -np.inf).argmax())
        chosen.append(best)
        total += features[best]
        free[best] = False
    return chosen
