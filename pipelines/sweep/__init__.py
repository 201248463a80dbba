"""Sweeps: protocol fields tuned on validation images, and the winner tested once."""
