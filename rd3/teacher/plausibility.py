"""Does a network know the classes of a dataset?  Chance, permuted classes and wrong constants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from rd3.datasets import Dataset, Split
from rd3.errors import BadValue, ClassOrderError
from rd3.inputs.class_order import best_permutation
from rd3.known_constants import KNOWN, option, spelled
from rd3.models import NormalisedNetwork
from rd3.recipe import Normalisation
from rd3.teacher.artifact import NOT_FINITE, Predictions, predict, verification_list

CONFIDENCE = 0.99
"""Of the interval of an accuracy that must not contain chance."""
GAIN_PCT, REACHED_PCT = 20.0, 50.0
"""Classes count as permuted if another order gains ``GAIN_PCT`` points and reaches ``REACHED_PCT`` %."""
NOTED_GAIN_PCT = 5.0
"""A gain by another order that is reported, for example of two exchanged classes."""
ORDER_IMAGES = 20
"""Training images of every class by which an order is found."""
TRIED_IMAGES = 128
"""About as many training images (128 to 511) are used to try each known normalisation."""
_GOOD_PCT = 97.0
"""Validation accuracy from which no other constants are tried."""
_CAUSES = "the constants of another normalisation, weights of another dataset, or a classifier that was not trained"


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a proportion, 0 to 1 (JASA 22, 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def chance(labels: torch.Tensor) -> float:
    """Largest accuracy without looking at an image, 0 to 1: the share of the most frequent class."""
    return int(labels.bincount().max()) / len(labels)


def best_order(tested: Predictions, num_classes: int) -> np.ndarray:
    """(C,) the output that stands for each class in the one-to-one assignment with the most correct predictions."""
    finite = tested.predicted != NOT_FINITE
    return best_permutation(tested.labels[finite], tested.predicted[finite], num_classes)


def reordered(tested: Predictions, order: np.ndarray) -> Predictions:
    """The predictions if output ``order[c]`` stood for class c."""
    finite = tested.predicted != NOT_FINITE
    classes = torch.from_numpy(np.argsort(order))[tested.predicted.where(finite, 0)]
    return tested._replace(predicted=classes.where(finite, NOT_FINITE))


def found_order(network: nn.Module, dataset: Dataset, device: torch.device) -> np.ndarray:
    """The best order on training images, so that no test image has a part in it."""
    tested = predict(network, dataset, "train", _per_class(dataset, "train", ORDER_IMAGES), device=device)
    return best_order(tested, dataset.info.num_classes)


def _per_class(dataset: Dataset, split: Split, count: int) -> list[int]:
    """Positions of the first images of every class, in the order of the split."""
    labels = dataset.labels(split)
    chosen = (np.flatnonzero(labels == label)[:count] for label in range(dataset.info.num_classes))
    return [int(position) for position in np.sort(np.concatenate(list(chosen)))]


class BetterConstants(NamedTuple):
    """Constants, or an order of the channels, with which a network is better than with those it was given."""

    normalisation: Normalisation
    given: Normalisation
    top1_pct: float
    given_pct: float
    images: int
    """Number of validation images, for both."""
    alike: tuple[str, ...] = ()
    """Other constants that are as good, within two points of the images on which all were tried."""
    bgr_layer: str | None = None
    """The first layer's weight, if the network is better with blue before green and red."""

    def worth_reporting(self, stated: bool) -> bool:
        """Whether to report it: where the user ``stated`` the constants, from a gain of five points on."""
        # A network that has not converged may be a little better with others than its own.
        return not stated or self.top1_pct - self.given_pct >= NOTED_GAIN_PCT

    @property
    def accuracies(self) -> str:
        """Both accuracies, as one sentence without its full stop."""
        alike = f" (about as good: {', '.join(self.alike)})" if self.alike else ""
        channels = "the channels in the order BGR and " if self.bgr_layer else ""
        return (
            f"with {channels}the constants {spelled(self.normalisation)} it classifies {self.top1_pct:.1f} % of "
            f"{self.images} validation images correctly, with {'RGB and ' if self.bgr_layer else ''}"
            f"{spelled(self.given)} {self.given_pct:.1f} %{alike}"
        )

    @property
    def fix(self) -> str:
        """How to import it so, a clause without its full stop."""
        constants = f"import it with --normalised {option(self.normalisation)}"
        if self.bgr_layer is None:
            return constants
        weight = f"state[{self.bgr_layer!r}]"
        then = "import that file" if self.normalisation == self.given else constants
        return f"reverse its input channels, {weight} = {weight}.flip(1), save it and {then}"


def better_constants(
    network: nn.Module,
    given: Normalisation,
    dataset: Dataset,
    device: torch.device,
    in_file: Normalisation | None = None,
) -> BetterConstants | None:
    """Constants with which the bare ``network`` is significantly better (McNemar's test, p < 0.01), if any.

    With them it must be better than twice chance.  The known ones, the dataset's and those ``in_file`` (of the weights)
    are tried on training images, the best of them is compared on validation images.  BGR in place of RGB is tried with
    the given constants and with the best, and must be significantly better than RGB on the training images too.
    ``network`` is in eval mode on ``device``.
    """
    validation = verification_list(dataset)

    def tested(constants: Normalisation, split: Split, positions: Sequence[int], bgr: bool = False) -> Predictions:
        normalise = NormalisedNetwork(nn.Identity(), constants).to(device)
        fed = (lambda rgb: network(normalise(rgb).flip(1))) if bgr else (lambda rgb: network(normalise(rgb)))
        return predict(fed, dataset, split, positions, device=device)

    with_given = tested(given, "validation", validation)
    if with_given.top1_pct >= _GOOD_PCT:
        return None
    # As many images of every class or, where there are hundreds of classes, of every second, third ... class.
    per_class = max(1, -(-TRIED_IMAGES // dataset.info.num_classes))
    tried = _per_class(dataset, "fit", per_class)[:: max(1, per_class * dataset.info.num_classes // (2 * TRIED_IMAGES))]
    known = [dataset.info.normalisation, *KNOWN.values()]
    others = [one for one in dict.fromkeys([in_file, *known] if in_file else known) if one != given]
    rgb = {one: tested(one, "fit", tried) for one in others}
    best = max(rgb, key=lambda one: rgb[one].top1_pct)
    rgb[given] = tested(given, "fit", tried)
    bgr = {one: tested(one, "fit", tried, bgr=True) for one in (given, best)}
    reverse = max(bgr, key=lambda one: bgr[one].top1_pct)
    layer = next((name for name, one in network.named_parameters() if one.ndim > 1 and one.shape[1] == 3), None)
    if layer and all(_significant(bgr[reverse], rgb[one]) for one in (given, best)):
        best = reverse
    else:
        layer = None
    least = rgb[best].top1_pct - 2
    alike = () if layer else tuple(option(one) for one in others if one != best and rgb[one].top1_pct >= least)
    with_best = tested(best, "validation", validation, bgr=layer is not None)
    # An untrained network too is a little better or worse with other constants.
    knows = wilson(with_best.correct, len(validation))[0] > 2 * chance(with_best.labels)
    if not knows or not _significant(with_best, with_given):
        return None
    return BetterConstants(best, given, with_best.top1_pct, with_given.top1_pct, len(validation), alike, layer)


def _significant(better: Predictions, given: Predictions) -> bool:
    """Whether ``better`` is right more often than ``given``: McNemar's exact one-sided test on paired predictions."""
    from scipy.stats import binom

    right, given_right = better.predicted == better.labels, given.predicted == given.labels
    gained, lost = int((right & ~given_right).sum()), int((given_right & ~right).sum())
    return gained > lost and float(binom.sf(gained - 1, gained + lost, 0.5)) < 0.01


def check_finite(name: str, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise :class:`BadValue` for the first tensor with values that are NaN or infinite, or too large for fp32."""
    for key, value in weights:
        if not value.is_floating_point() or bool(value.float().isfinite().all()):
            continue
        wrong, nan = ~value.float().isfinite(), int(value.float().isnan().sum())
        what = "too large for fp32" if bool(value.isfinite().all()) else "NaN or infinite" if nan else "infinite"
        half = value.dtype == torch.float16
        cause = f", as values beyond {torch.finfo(value.dtype).max:.0f} are in fp16" if half and not nan else ""
        raise BadValue(
            f"{name} has {int(wrong.sum())} of {value.numel()} values of {key} that are {what}{cause}.",
            "save the weights in fp32 from where they were trained"
            if cause
            else "use weights from before the training diverged, or from before a conversion to fp16 if that made them "
            "infinite",
        )


def check_outputs(name: str, tested: Predictions) -> None:
    """Raise :class:`BadValue` for logits that are NaN or infinite."""
    if wrong := int((tested.predicted == NOT_FINITE).sum()):
        raise BadValue(
            f"{name} has logits that are NaN or infinite on {wrong} of {len(tested.labels)} {tested.split} images.",
            "check its weights: a running variance below zero, or values that overflow",
        )


def check_not_permuted(
    name: str, tested: Predictions, network: nn.Module, dataset: Dataset, device: torch.device, fix: str
) -> str:
    """Raise :class:`ClassOrderError` for classes that are permuted; returns a sentence on a smaller gain, or "".

    The order is found on training images, what it gains is counted on the tested ones.  ``{order}`` in ``fix`` is
    replaced by it.
    """
    at_best = reordered(tested, best_order(tested, dataset.info.num_classes))
    if at_best.top1_pct - tested.top1_pct < NOTED_GAIN_PCT:
        return ""
    order = found_order(network, dataset, device)
    other = reordered(tested, order)
    gain, ids = other.top1_pct - tested.top1_pct, dataset.info.class_ids
    first = next((label for label, output in enumerate(order) if label != output), 0)
    fact = (
        f"The classes of {name} look permuted: it classifies {tested.top1_pct:.1f} % of {len(tested.labels)} "
        f"{tested.split} images of {dataset.info.name} correctly, with this order {other.top1_pct:.1f} %: class "
        f"{ids[first]} is its output {order[first]}, not {first}"
    )
    more = int((order != np.arange(len(order))).sum()) - 1
    fact += f", and {more} more {'class differs' if more == 1 else 'classes differ'}." if more else "."
    fix = fix.replace("{order}", str(order.tolist()))
    if gain >= GAIN_PCT and other.top1_pct >= REACHED_PCT:
        raise ClassOrderError(fact, fix)
    return f"{fact} {sentence(fix)}" if gain >= NOTED_GAIN_PCT else ""


def check_above_chance(
    name: str, tested: Predictions, dataset: Dataset, better: BetterConstants | None, fix: str
) -> None:
    """Raise :class:`BadValue` for an accuracy not above chance, of which ``better`` constants are the likely cause."""
    low, high = wilson(tested.correct, len(tested.labels))
    by_chance = chance(tested.labels)
    if low > by_chance:
        return
    classes, counts = tested.predicted.unique(return_counts=True)
    share = int(counts.max()) / len(tested.labels)
    same = f" and predicts class {int(classes[counts.argmax()])} for {100 * share:.0f} % of them" if share > 0.5 else ""
    cause = f"likely causes are {_CAUSES}"
    if better:
        what = "channels in the order BGR" if better.bgr_layer else "its constants"
        cause = f"{what} are the likely cause: {better.accuracies}"
    raise BadValue(
        f"{name} does not know the classes of {dataset.info.name}: it classifies {tested.top1_pct:.1f} % of "
        f"{len(tested.labels)} {tested.split} images correctly{same} (99 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}), and chance is {100 * by_chance:.1f} %; {cause}.",
        fix,
    )


def sentence(clause: str) -> str:
    """The clause with a capital letter and a full stop."""
    return f"{clause[:1].upper()}{clause[1:]}."
