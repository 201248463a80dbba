"""Losses of post-evaluation.  A loss is one function in one file; others come from entry points ``rd3.losses``."""

from rd3.losses._base import LOSSES, Loss, LossTargets, register_loss

__all__ = ["LOSSES", "Loss", "LossTargets", "register_loss"]
