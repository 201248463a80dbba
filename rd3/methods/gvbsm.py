"""G-VBSM: images that match the layer statistics of many networks and differ within a class."""

from __future__ import annotations

from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.lazy import F, torch
from rd3.methods import Block, Context, Support, register_method
from rd3.methods._pixels import to_uint8
from rd3.methods._pool import Pool, PoolMethod, PoolSettings, view
from rd3.methods._recovery import optimise, start

_SIDE = 32
"""Side, in pixels, to which data densification pools images."""
_TEMPERATURE = 4.0
"""Temperature of the flatter spectrum that is the target of data densification."""


class GVBSMSettings(PoolSettings):
    """Settings as in the scripts in ``Branch_*/recover``."""

    density_weight: float = Field(default=1.0, ge=0)
    """Weight of data densification relative to the cross-entropy."""
    jitter: int = Field(default=32, ge=0)
    """Maximum random roll of the batch along each axis, in pixels; 32-pixel images wrap fully."""
    parts: int = Field(default=1, ge=1)
    """Number of parts into which the images of each class are divided; each part holds all classes and is optimised
    before the next."""


@register_method("gvbsm", version=1)
class GVBSM(PoolMethod):
    """Noise optimised for the classification of a pool of networks and for the layer statistics of real data.

    A batch holds whole classes, as far as they fit.  Every iteration takes one random view of the batch (crop, flip,
    roll: shared by all its images) and the next teacher of the pool, and adds the cross-entropy, ``matching_weight``
    times the distance from the running statistics of BatchNorm layers and from collected ones of convolutions
    (channels and tiles), and ``density_weight`` times data densification, which makes the images of a class differ.
    The last iterate is kept.  Sets do not nest: a batch depends on the IPC.

    Source: Shao et al., "Generalized Large-Scale Data Condensation via Various Backbone and Statistical Matching",
    CVPR 2024; shaoshitong/G_VBSM_Dataset_Condensation
    ``Branch_*/recover/data_synthesis_with_svd_with_db_with_all_statistic.py`` and ``utils.py``.

    Deviations: at IPC 1, for which there is no script, densification has no effect; moving averages of statistics
    restart with every batch, so that batches are independent, where the authors' continue from the previous batch;
    eigenvalues come from a symmetric solver; every teacher gets pixels normalised with its own constants, and the
    optimisation runs in the normalised space of the first one; the resized crop is antialiased; one random stream per
    batch, where the authors fix no seed; stored losslessly unless ``save_format`` is ``jpeg``.
    """

    Settings = GVBSMSettings

    def supports(self, info: DatasetInfo, ipc: int) -> Support:
        return Support(True)

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        settings: GVBSMSettings = ctx.settings
        stream = ctx.rng("recover", block.index)
        with ctx.phase("recover"):
            pool = Pool(block, ctx)
            groups = class_groups(pool.labels)

            def loss_of(images: torch.Tensor, iteration: int) -> torch.Tensor:
                seen = view(images, settings, stream, jitter=settings.jitter)
                logits, matching = pool.forward(seen, iteration)
                loss = F.cross_entropy(logits, pool.labels) + settings.matching_weight * matching
                return loss + settings.density_weight * densification(seen, groups)

            images = start(block, ctx, stream)
            where = f"G-VBSM, block {block.index}"
            images = optimise(images, loss_of, pool.space, settings, where=where, progress=ctx.progress)
            return to_uint8(pool.space.to_255(images), settings.save_format)


def class_groups(labels: torch.Tensor) -> list[torch.Tensor]:
    """Positions of the images of each class with at least two in the batch: one (G, n) for the G classes of n images.

    ``labels``: (B,) int64.
    """
    by_count: dict[int, list[torch.Tensor]] = {}
    for label in labels.unique():
        positions = (labels == label).nonzero().flatten()
        by_count.setdefault(len(positions), []).append(positions)
    return [torch.stack(positions) for count, positions in by_count.items() if count > 1]


def densification(images: torch.Tensor, groups: list[torch.Tensor]) -> torch.Tensor:
    """Data densification loss, summed over classes: how similar the images of a class are; 0 without ``groups``.

    For the eigenvalues l of a class's Gram matrix, of images pooled to 32 x 32: KL(softmax(l / 4) || softmax(l)), the
    flatter side a constant.
    """
    total = images.new_zeros(())
    if not groups:
        return total
    vectors = F.adaptive_avg_pool2d(images, _SIDE).flatten(1)
    for positions in groups:
        of_class = vectors[positions]
        try:
            # The gradient of eigenvalues alone, without the vectors, is finite where two of them coincide.
            spectrum = torch.linalg.eigvalsh(of_class @ of_class.mT)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not in __all__
            # Pixels are not finite, which the loss reports together with its iteration.
            return total + torch.nan
        flat = (spectrum.detach() / _TEMPERATURE).log_softmax(-1)
        total = total + (flat.exp() * (flat - spectrum.log_softmax(-1))).sum()
    return total
