"""Augmentations of post-evaluation.  One class in one file; others come from entry points ``rd3.augmentations``."""

from rd3.augmentations._base import AUGMENTATIONS, Augmentation, Draws, Mix, register_augmentation, transforms

__all__ = ["AUGMENTATIONS", "Augmentation", "Draws", "Mix", "register_augmentation", "transforms"]
