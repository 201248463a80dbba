"""Features of synthetic and real images in two dimensions by t-SNE (the paper's Figure 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rd3.component import changes_text
from rd3.errors import RD3Error
from tracking.report.figures import Points, map_chart
from tracking.report.query import own_settings

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from rd3.datasets import Dataset
    from rd3.models import NormalisedNetwork
    from rd3.synthetic_set import SyntheticSet
    from tracking.report.charts import Drawing

_CLASSES = 10
"""Number of classes in a map: the first ones of the dataset."""
_REAL = 100
"""Real images per class; with more, the real ones alone would decide the map."""
_AT_ONCE = 250
"""Images per forward pass of the teacher."""


def embedded(groups: dict[str, Points], *, perplexity: float = 30.0) -> dict[str, Points]:
    """The groups with (n, 2) positions in place of features, from one t-SNE of all, so that these can be compared.

    ``groups``: name to the (n, d) features of its images.  ``perplexity`` is lowered for fewer than three times as many
    images.  Source: van der Maaten and Hinton, 2008; scikit-learn's implementation, initialised by PCA.
    """
    from sklearn.manifold import TSNE

    together = np.concatenate([points.features for points in groups.values()])
    perplexity = min(perplexity, max(1.0, (len(together) - 1) / 3))
    positions = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(together).astype(np.float64)
    ends = np.cumsum([len(points.labels) for points in groups.values()])[:-1]
    parts = np.split(positions, ends)
    return {name: Points(part, points.labels) for (name, points), part in zip(groups.items(), parts, strict=True)}


class DataSource(Protocol):
    """Where datasets, teachers and sets come from, such as a :class:`pipelines.Workspace`."""

    def dataset(self, name: str) -> Dataset: ...
    def teacher(self, dataset: str, role: str) -> NormalisedNetwork: ...
    def open_set(self, key: str) -> SyntheticSet: ...


def drawings(work: DataSource, frame: pd.DataFrame) -> Iterator[Drawing]:
    """A chart per dataset and IPC of a grid: the first set of each method, with its settings, and real images.

    ``frame``: the grid's results, one row per evaluation.  A chart that cannot be drawn says what is missing.
    """
    for (name, ipc), rows in frame[frame["set"].notna()].groupby(["dataset", "ipc"], sort=False):
        methods: dict[str, str] = {}
        for row in rows[rows["status"] == "done"].to_dict("records"):
            own = own_settings(row["method"], row["overrides"])
            methods.setdefault(" ".join([row["method"], changes_text(own)]).strip(), row["set"])
        yield _drawing(work, str(name), int(ipc), str(rows["teacher"].iloc[0]), methods)


def _drawing(work: DataSource, name: str, ipc: int, role: str, methods: dict[str, str]) -> Drawing:
    from tracking.report.charts import Drawing

    title = f"Features of {name}, IPC {ipc}"
    if not methods:
        return Drawing(title, "Not drawn: no set has been evaluated yet.", b"")
    try:
        dataset = work.dataset(name)
        teacher = work.teacher(name, role)
        groups = {"real": _of_real(dataset, teacher)}
        groups |= {method: _of_set(work.open_set(key), teacher) for method, key in methods.items()}
    except RD3Error as error:
        return Drawing(title, f"Not drawn: {error}", b"")
    caption = (
        f"Features before the last layer of teacher {role}, of the first {_CLASSES} classes: synthetic images (large "
        f"dots) over at most {_REAL} real training images a class (small dots). One t-SNE of all of them, so that "
        "positions can be compared between panels; distances between far clusters mean nothing."
    )
    return Drawing(title, caption, map_chart(embedded(groups), name=f"features-{name}-{ipc}"))


def _of_real(dataset: Dataset, teacher: NormalisedNetwork) -> Points:
    labels = dataset.labels("train")
    chosen = np.concatenate([np.flatnonzero(labels == label)[:_REAL] for label in range(_CLASSES)])
    parts = np.split(chosen, range(_AT_ONCE, len(chosen), _AT_ONCE))
    features = [_features(dataset.images("train", part.tolist()), teacher) for part in parts]
    return Points(np.concatenate(features), labels[chosen])


def _of_set(synthetic: SyntheticSet, teacher: NormalisedNetwork) -> Points:
    shown = synthetic.labels < _CLASSES
    return Points(_features(synthetic.images[shown], teacher), synthetic.labels[shown].numpy())


def _features(images: torch.Tensor, teacher: NormalisedNetwork) -> np.ndarray:
    """(n, d) features before the last layer of (n, 3, h, w) uint8 images."""
    import torch

    from rd3.augment import to_unit

    with torch.inference_mode():
        parts = [teacher.features(to_unit(part)).flatten(1).double() for part in images.split(_AT_ONCE)]
        return torch.cat(parts).numpy()
