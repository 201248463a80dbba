"""k-center: real images that cover the features of their class."""

from __future__ import annotations

import numpy as np

from rd3.methods import register_method
from rd3.methods._coreset import FeatureCoreset


@register_method("k_center", version=1)
class KCenter(FeatureCoreset):
    """Real images, each the one whose features are farthest from all those selected before, class by class.

    Features are the inputs of the teacher's last linear layer, distances are Euclidean.  The first image of a class is
    the one nearest to the mean of its features.  Of images that are equally far, the first of the dataset is selected.
    The largest distance of an image of the class to its nearest selected one is at most twice the smallest possible.

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
    Algorithm 1 (greedy k-center).

    Deviations: the greedy algorithm without the integer program that refines it; class by class, so that all classes
    have equally many images (in active learning the labels are unknown); the start is the image nearest to the mean,
    where the publication has an initial pool of random images.
    """

    def select(self, features: np.ndarray, wanted: int) -> list[int]:
        def distances(point: np.ndarray) -> np.ndarray:
            return np.asarray(np.linalg.norm(features - point, axis=1))

        chosen = [int(distances(features.mean(axis=0)).argmin())]
        nearest = distances(features[chosen[0]])
        while len(chosen) < wanted:
            nearest[chosen[-1]] = -1.0  # never again, also where copies of it are at distance zero
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, distances(features[chosen[-1]]))
        return chosen
