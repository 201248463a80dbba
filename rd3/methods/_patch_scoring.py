"""Which crops of real images a teacher finds most typical of their class.

A fast copy of the teacher ranks all crops.  The teacher itself then scores those that can still be among the best, so
that the choice is the one it would make alone.  Only the boxes of crops are kept, not their pixels, so that memory does
not grow with the number of crops; chosen crops are cut out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from rd3.augment import crop_and_resize, crop_boxes
from rd3.device import autocast, resolve_precision, set_memory_format
from rd3.lazy import F, torch
from rd3.methods import Context

_DECODED = 32
"""Images that are decoded at once."""
_PIXELS = {"cpu": 2**18, "cuda": 2**25}
"""Pixels that a network takes at once: caches bound it on a CPU (256 crops at 32 pixels), memory on a GPU."""
_MEASURED = 32
"""Minimum number of crops on which the error of the copy is measured."""
_SAFETY = 5.0
"""Factor by which any error may exceed the largest measured one.  Rounding errors of bf16 are about symmetric around
zero: the largest of 32 is near two standard deviations, and this bound near ten."""
_RESOLVED = 12.0
"""Larger margins are treated as equal, because float32 no longer separates their losses: at 12 the loss is 6e-6, in
steps of 1e-7."""


@dataclass(frozen=True)
class Crops:
    """Square crops of the images of one class, as boxes."""

    label: int
    images: Sequence[int]
    """(M) positions in the split from which the set is generated."""
    boxes: torch.Tensor
    """(M, R, 4) int64: top, left, height, width, in pixels of the original: the image as stored, of any size."""
    size: int
    """Side that a crop is resized to, pixels."""

    def pixels(self, image: int, crops: torch.Tensor, ctx: Context) -> torch.Tensor:
        """(n, 3, s, s) float in 0-255: the crops with these numbers, (n,), of image 0 .. M-1, which is read again."""
        (original,) = ctx.dataset.originals(ctx.split, [self.images[image]])
        return crop_and_resize(original.float().expand(len(crops), -1, -1, -1), self.boxes[image, crops], self.size)


def key_patches(
    label: int, images: Sequence[int], wanted: int, stream: torch.Generator, ctx: Context, *, size: int
) -> torch.Tensor:
    """(wanted, 3, s, s) float in 0-255: at most one crop of an image, those with the lowest loss, best first.

    ``images`` (M >= wanted) are positions of images of class ``label``.  The random crops of each image, as many as the
    method's setting ``num_crop``, are drawn from ``stream``; the loss is the teacher's cross-entropy for the class.
    """
    crops, margins = _ranked(label, images, stream, ctx, size)
    losses = contenders_scored(margins, wanted, lambda places: _scored(crops, places, ctx))
    key_loss, key = losses.min(dim=1)
    best = key_loss.argsort(stable=True)[:wanted].tolist()
    return torch.cat([crops.pixels(image, key[image : image + 1], ctx) for image in best])


def contenders_scored(
    margins: torch.Tensor, wanted: int, score: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """(M, R) the teacher's losses of all crops that can be chosen, infinite for the others.

    ``margins``: (M, R) of all crops, by the fast copy (:func:`margin`).  ``score(places)``: the teacher's losses and
    margins, (n,) each, of crops numbered row by row.  If the copy's margins are wrong by at most e, a crop cannot be
    chosen if it is 2e below the best of its image, or 2e below the best of the last image that is wanted.  e is
    ``_SAFETY`` times the largest error on the crops scored so far; the crops that it admits are scored, until there are
    no more.
    """
    ranks = margins.flatten()
    losses, errors = torch.full_like(ranks, torch.inf), torch.zeros_like(ranks)
    scored = torch.zeros_like(ranks, dtype=torch.bool)
    due = _contenders(margins, wanted, 0.0).flatten()
    due[ranks.argsort(descending=True)[:_MEASURED]] = True
    while bool(due.any()):
        places = due.nonzero().flatten()
        losses[places], exact = score(places)
        errors[places] = (exact - ranks[places]).abs()
        scored |= due
        due = _contenders(margins, wanted, 2 * _SAFETY * float(errors.max())).flatten() & ~scored
    return losses.view_as(margins)


def _contenders(margins: torch.Tensor, wanted: int, reach: float) -> torch.Tensor:
    """(M, R) whether a crop is at most ``reach`` below the best of its image and of the last image that is wanted."""
    margins = margins.clamp(max=_RESOLVED)
    best = margins.max(dim=1, keepdim=True).values
    last = best.flatten().sort(descending=True).values[wanted - 1]
    return ~(margins < best.clamp(min=last) - reach)


def _ranked(
    label: int, images: Sequence[int], stream: torch.Generator, ctx: Context, size: int
) -> tuple[Crops, torch.Tensor]:
    """Crops of the images, drawn image by image, and their margins (M, R) by the fast copy."""
    boxes: list[torch.Tensor] = []
    margins: list[torch.Tensor] = []
    for batch in _batches(_drawn(images, boxes, stream, ctx, size), images_per_pass(ctx)):
        margins.append(margin(_fast_logits(torch.stack(batch), ctx), label).cpu())
        ctx.progress(min(1.0, len(boxes) / len(images)))
    crops = Crops(label, images, torch.stack(boxes), size)
    return crops, torch.cat(margins).view(crops.boxes.shape[:2])


def _drawn(
    images: Sequence[int], boxes: list[torch.Tensor], stream: torch.Generator, ctx: Context, size: int
) -> Iterator[torch.Tensor]:
    """Yield crops (3, s, s) in 0-255 on the device, and append their boxes, (R, 4) for each image, to ``boxes``."""
    settings = ctx.settings
    for first in range(0, len(images), _DECODED):
        originals = ctx.dataset.originals(ctx.split, images[first : first + _DECODED])
        drawn = [
            crop_boxes(settings.num_crop, height, width, settings.scale_min, stream, ratio=(1.0, 1.0))
            for height, width in (original.shape[1:] for original in originals)
        ]
        boxes.extend(drawn)
        alike = len({original.shape for original in originals}) == 1
        cut = _cut_together if alike and ctx.device.type != "cpu" else _cut_singly
        yield from cut([original.to(ctx.device) for original in originals], drawn, size)


def _cut_singly(originals: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Crops (3, s, s) of images of any size, as ``crop_and_resize`` gives them but for rounding.

    Fastest on a CPU, as it reads no pixel outside of a box.
    """
    for original, drawn in zip(originals, boxes, strict=True):
        pixels = original.float()[None]
        for top, left, height, width in drawn.tolist():
            cut = pixels[:, :, top : top + height, left : left + width]
            yield F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]


def _cut_together(
    originals: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor], size: int
) -> Iterator[torch.Tensor]:
    """The same for images of one size in few operations, for GPUs; as many boxes at a time as there are images."""
    images, flat = torch.stack(list(originals)).float(), torch.cat(list(boxes))
    numbers = torch.arange(len(images), device=images.device).repeat_interleave(len(boxes[0]))
    for some, own in zip(numbers.split(len(images)), flat.split(len(images)), strict=True):
        yield from crop_and_resize(images[some], own, size)


def _batches(crops: Iterator[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    while batch := list(islice(crops, size)):
        yield batch


def images_per_pass(ctx: Context) -> int:
    """Number of images or crops that a network takes in one pass on the context's device."""
    return min(2048, max(16, _PIXELS.get(ctx.device.type, _PIXELS["cuda"]) // ctx.info.resolution**2))


def _fast_logits(crops: torch.Tensor, ctx: Context) -> torch.Tensor:
    """(B, C) float32 logits of the teacher's fast copy: norms folded, channels last, bf16 where the device has it."""
    from rd3.models import folded

    precision = resolve_precision(ctx.device, "auto")
    if "fast teacher" not in ctx.shared:
        ctx.shared["fast teacher"] = folded(ctx.teachers[0])
        set_memory_format(ctx.shared["fast teacher"], precision)
    with torch.inference_mode(), autocast(ctx.device, precision):
        logits: torch.Tensor = ctx.shared["fast teacher"](framed(crops, ctx)).float()
    return logits


def _scored(crops: Crops, places: torch.Tensor, ctx: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and margins, (n,) each, by the teacher itself, of crops numbered row by row, in ascending order."""
    numbers = places // crops.boxes.shape[1]

    def cut() -> Iterator[torch.Tensor]:
        for image in numbers.unique().tolist():
            yield from crops.pixels(image, places[numbers == image] % crops.boxes.shape[1], ctx)

    outputs = [logits_of(torch.stack(batch), ctx).cpu() for batch in _batches(cut(), images_per_pass(ctx))]
    logits = torch.cat(outputs)
    return cross_entropy(logits, crops.label), margin(logits, crops.label)


def logits_of(crops: torch.Tensor, ctx: Context) -> torch.Tensor:
    """(B, C) float32 logits of the teacher for crops (B, 3, s, s) in 0-255."""
    with torch.inference_mode(), ctx.autocast():
        return ctx.teachers[0](framed(crops.to(ctx.device), ctx)).float()


def framed(crops: torch.Tensor, ctx: Context) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1]: crops (B, 3, s, s) in 0-255, each in the centre of an image of the mean colour."""
    teacher, side, size = ctx.teachers[0], ctx.info.resolution, crops.shape[-1]
    pixels = crops / 255
    if size == side:
        return pixels
    # The teacher's normalisation turns the mean colour into zeros.
    canvas = teacher.mean.expand(len(pixels), 3, side, side).clone()
    start = (side - size) // 2
    canvas[:, :, start : start + size, start : start + size] = pixels
    return canvas


def cross_entropy(logits: torch.Tensor, label: int) -> torch.Tensor:
    """(B,) cross-entropy of one class, from logits (B, C)."""
    return -logits.log_softmax(dim=1)[:, label]


def margin(logits: torch.Tensor, label: int) -> torch.Tensor:
    """(B,) log-odds of one class: its cross-entropy is softplus(-margin), but the margin does not saturate."""
    others = logits.clone()
    others[:, label] = -float("inf")
    return logits[:, label] - others.logsumexp(dim=1)
