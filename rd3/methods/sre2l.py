"""SRe2L: images optimised for a trained network's classification and its BatchNorm statistics."""

from __future__ import annotations

from rd3.methods import register_method
from rd3.methods._bn_matching import BatchNormMatching


@register_method("sre2l", version=1)
class SRe2L(BatchNormMatching):
    """Noise optimised for the teacher's cross-entropy and for batch statistics equal to its running ones.

    Image ``k`` of each of ``batch_classes`` classes is one batch, in class order.  From Gaussian noise, every iteration
    takes one random view of the batch (crop, flip, roll: shared by all its images), adds the cross-entropy and
    ``bn_weight`` times the BatchNorm term, takes an Adam step on the pixels and clamps them.  The last iterate is kept.
    No real image is used.  Sets nest: the IPC-1 set is the first batch of every class group of a larger one.

    Source: Yin, Xing and Shen, "Squeeze, Recover and Relabel", NeurIPS 2023; VILA-Lab/SRe2L
    ``SRe2L/recover/data_synthesis.py``, ``recover.sh`` and the small-dataset scripts.

    Deviations: the total-variation and L2 terms, which every released script sets to zero, are left out; the resized
    crop is antialiased; pixels are clamped to the teacher's own constants; one random stream per batch, where the
    authors fix no seed; stored losslessly unless ``save_format`` is ``jpeg``.
    """

    side_by_side = True
