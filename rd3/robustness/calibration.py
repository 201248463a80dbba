"""Calibration of a classifier: how far its confidence can be trusted.

Sources: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017 (expected calibration
error, temperature scaling); Brier, "Verification of forecasts expressed in terms of probability", 1950.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

BINS = 15
"""As in Guo et al., Table 1."""
COLDEST, HOTTEST = 1e-2, 1e2
"""Range in which a temperature is fitted."""


class Bin(NamedTuple):
    """One bin of a reliability diagram: predictions whose confidence is above ``low`` and at most ``high``."""

    low: float
    high: float
    images: int
    """Number of predictions in it."""
    confidence: float | None
    """Mean probability of the predicted class; None for an empty bin."""
    accuracy: float | None
    """Share of correct predictions (0-1); None for an empty bin."""


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, C) float64: softmax of logits (N, C), which are divided by ``temperature`` first."""
    from scipy.special import softmax

    return np.asarray(softmax(logits.astype(np.float64) / temperature, axis=1))


def reliability(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram of probabilities (N, C) for labels (N,), with bins of equal width."""
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    diagram = []
    for number in range(bins):
        own = place == number
        means = (float(confidence[own].mean()), float(right[own].mean())) if own.any() else (None, None)
        diagram.append(Bin(float(edges[number]), float(edges[number + 1]), int(own.sum()), *means))
    return diagram


def expected_calibration_error(diagram: list[Bin]) -> float:
    """Mean distance of accuracy and confidence (0-1) over the bins, each with the weight of its predictions."""
    distances = (each.images * abs((each.accuracy or 0) - (each.confidence or 0)) for each in diagram)
    return sum(distances) / sum(each.images for each in diagram)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log p(label), in nats, of logits (N, C)."""
    from scipy.special import log_softmax

    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def brier_score(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the squared distance to the one-hot label, summed over classes (0-2, as Brier defined it)."""
    truth = np.eye(probs.shape[1])[labels]
    return float(((probs - truth) ** 2).sum(axis=1).mean())


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature with the least negative log-likelihood; None if none is better than both ends of the range.

    There is nothing to fit where all predictions are right, or where they tell no more than chance.
    """
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(log))

    ends = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(loss, bounds=ends, method="bounded")
    return math.exp(found.x) if loss(found.x) < min(map(loss, ends)) else None


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float | None = None) -> dict[str, Any]:
    """Figures of calibration of logits (N, C) for labels (N,), and the reliability diagram as ``reliability``.

    ``temperature``: one that was fitted on other images; adds the figures of the scaled probabilities.
    """
    probs = probabilities(logits)
    diagram = reliability(probs, labels)
    found: dict[str, Any] = {
        "ece_pct": 100 * expected_calibration_error(diagram),
        "nll": negative_log_likelihood(logits, labels),
        "brier": brier_score(probs, labels),
        "confidence_pct": 100 * float(probs.max(axis=1).mean()),
        "reliability": [each._asdict() for each in diagram],
    }
    if temperature is not None:
        scaled = reliability(probabilities(logits, temperature), labels)
        found["calibration_temperature"] = temperature
        found["scaled_ece_pct"] = 100 * expected_calibration_error(scaled)
        found["scaled_nll"] = negative_log_likelihood(logits, labels, temperature)
    return found
