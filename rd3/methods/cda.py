"""CDA: SRe2L with a curriculum of crops, from whole images to small ones."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from rd3.methods import register_method
from rd3.methods._bn_matching import BatchNormMatching, MatchingSettings

Curriculum = Literal["cosine", "linear", "step", "none"]


class CDASettings(MatchingSettings):
    """Settings as in ``recover_cda_*.py`` and in the README that calls them."""

    crop_scale_min: float = Field(default=0.08, gt=0, le=1)
    """Minimum area of the random resized crop at the end of the curriculum, as a fraction of the image."""
    flip: bool = True
    """Flip the batch horizontally with probability 0.5 at each iteration."""
    curriculum: Curriculum = "cosine"
    """Schedule by which the minimum crop area falls from 1; ``none`` keeps it at ``crop_scale_min`` throughout, with
    everything else equal."""
    milestone: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the iterations after which the curriculum ends."""


@register_method("cda", version=1)
class CDA(BatchNormMatching):
    """SRe2L with increasingly hard crops: first the whole image, then smaller and smaller parts, down to SRe2L's.

    The smallest area that a crop may take falls from 1 to ``crop_scale_min`` during the first ``milestone`` of the
    iterations, along a cosine or a line, or at its end (``step``); the largest is always 1.  All else is SRe2L's: one
    view shared by the batch, flip, roll, cross-entropy plus BatchNorm term, Adam, clamp, last iterate.  Areas near 1
    fit no oblong box: then the view is the whole image.  Sets nest.

    Source: Yin and Shen, "Dataset Distillation via Curriculum Data Synthesis in Large Data Era" (CDA), TMLR 2024;
    VILA-Lab/SRe2L ``CDA/recover_cda_in1k.py``, ``CDA/recover_cda_tiny.py``, ``CDA/README.md``.

    Deviations: as SRe2L (the resized crop is antialiased; pixels are clamped to the teacher's own constants; one random
    stream per batch, where the authors fix no seed; stored losslessly unless ``save_format`` is ``jpeg``), and at 32
    pixels crop and flip are on, unlike in SRe2L: without a crop there is no curriculum.
    """

    Settings = CDASettings
    side_by_side = True

    def min_area(self, settings: CDASettings, iteration: int) -> float:
        end = settings.milestone * settings.iterations
        return smallest_area(iteration, end, settings.curriculum, settings.crop_scale_min)


def smallest_area(iteration: int, end: float, curriculum: Curriculum, lowest: float) -> float:
    """Minimum crop area at ``iteration``, as a fraction of the image; the curriculum runs from 0 to before ``end``."""
    if curriculum == "none" or iteration >= end:
        return lowest
    done = iteration / end
    fallen = {"cosine": (1 - math.cos(math.pi * done)) / 2, "linear": done, "step": 0.0}[curriculum]
    # In this form rounding never gives more than 1, which no crop could be drawn from.
    return 1 - (1 - lowest) * fallen
