"""Sweeps: tune protocol fields on validation images and test the winner once."""
