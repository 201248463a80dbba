"""Figures of calibration against closed forms, plain loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from rd3.robustness.calibration import (
    BINS,
    brier_score,
    calibration,
    expected_calibration_error,
    fitted_temperature,
    negative_log_likelihood,
    probabilities,
    reliability,
)


def draws(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn from their probabilities: a perfectly calibrated classifier."""
    stream = np.random.default_rng(seed)
    logits = 2 * stream.normal(size=(count, classes))
    totals = probabilities(logits).cumsum(axis=1)
    return logits, (totals < stream.uniform(size=(count, 1))).sum(axis=1).clip(max=classes - 1)


def test_two_predictions_by_hand():
    logits = np.log(np.array([[0.8, 0.2], [0.4, 0.6]]))
    labels = np.array([0, 0])
    assert negative_log_likelihood(logits, labels) == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert brier_score(probabilities(logits), labels) == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    # One prediction per bin: |1 - 0.8| and |0 - 0.6|, each with half of the weight.
    assert expected_calibration_error(reliability(probabilities(logits), labels)) == pytest.approx(0.4)


def test_a_bin_compares_its_mean_confidence_with_its_accuracy():
    chances = np.array([[0.95, 0.05], [0.96, 0.04], [0.97, 0.03], [0.94, 0.06]])
    [filled] = [each for each in reliability(chances, np.array([0, 0, 0, 1])) if each.images]
    assert (filled.low, filled.high) == (pytest.approx(14 / 15), 1)
    assert (filled.images, filled.accuracy, filled.confidence) == (4, 0.75, pytest.approx(0.955))
    assert expected_calibration_error([filled]) == pytest.approx(0.205)


def test_certain_and_uncertain_predictions_lie_in_the_outermost_bins():
    chances = np.array([[1.0, 0.0], [0.5, 0.5]])
    diagram = reliability(chances, np.array([0, 0]), bins=2)
    assert [each.images for each in diagram] == [1, 1], "a bin contains its upper edge, not its lower one"
    assert expected_calibration_error(reliability(np.array([[1.0, 0.0]]), np.array([0]))) == 0


def test_the_error_is_that_of_a_plain_loop_and_the_bins_those_of_sklearn():
    logits, _calibrated = draws(2000, 5)
    labels = np.random.default_rng(1).integers(0, 5, 2000)
    chances = probabilities(logits)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    error = 0.0
    for place in range(BINS):
        inside = [i for i in range(2000) if place / BINS < confidence[i] <= (place + 1) / BINS]
        if inside:
            error += abs(sum(right[i] for i in inside) - sum(confidence[i] for i in inside)) / 2000
    diagram = reliability(chances, labels)
    assert expected_calibration_error(diagram) == pytest.approx(error)
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    filled = [each for each in diagram if each.images]
    assert [each.accuracy for each in filled] == pytest.approx(accuracy.tolist())
    assert [each.confidence for each in filled] == pytest.approx(mean_confidence.tolist())


def test_likelihood_and_brier_score_are_those_of_sklearn():
    logits, labels = draws(500, 4)
    chances = probabilities(logits)
    assert negative_log_likelihood(logits, labels) == pytest.approx(log_loss(labels, chances))
    one_hot = np.eye(4)[labels]
    by_class = [brier_score_loss(one_hot[:, each], chances[:, each]) for each in range(4)]
    assert brier_score(chances, labels) == pytest.approx(sum(by_class))


def test_a_calibrated_classifier_has_almost_no_error_and_one_that_is_too_sure_has():
    logits, labels = draws(100_000, 10)
    assert calibration(logits, labels)["ece_pct"] < 0.6
    assert calibration(3 * logits, labels)["ece_pct"] > 10


def test_the_temperature_undoes_a_factor_of_the_logits():
    logits, labels = draws(50_000, 10)
    assert fitted_temperature(3 * logits, labels) == pytest.approx(3, rel=0.03)
    figures = calibration(3 * logits, labels, temperature=3.0)
    plain = calibration(logits, labels)
    assert figures["scaled_ece_pct"] == pytest.approx(plain["ece_pct"])
    assert figures["scaled_nll"] == pytest.approx(plain["nll"])
    assert "scaled_nll" not in plain


def test_where_every_prediction_is_right_no_temperature_is_best():
    assert fitted_temperature(5 * np.eye(4), np.arange(4)) is None
