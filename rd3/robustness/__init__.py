"""Calibration and corruption robustness of a kept student, measured on the test images of its evaluation."""
