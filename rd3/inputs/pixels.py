"""Pixel values from outside: recognise the space they lie in, undo it where it is stated, refuse what is ambiguous."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rd3.errors import BadValue
from rd3.inputs.notes import Note
from rd3.known_constants import KNOWN, Constants, spelled, stated_constants
from rd3.lazy import torch
from rd3.recipe import Normalisation

_LOST = 0.004
"""Below it (1/255) lie all pixels that were divided by 255 twice."""
_DARK = 0.1
"""Images whose brightest pixel is below it are doubtful."""
_NARROW = 0.3
"""Ranges below it are doubtful."""
_CENTRE, _FLAT = 0.98, 0.5
"""Values are doubtful, too, if this share of them lies within this part of their range.  In CIFAR-10 it takes 0.95 of
the range."""
_ROUNDING = 1e-3
"""Tolerance outside [0, 1] that is attributed to rounding after denormalisation."""
_FLOAT_ERROR = 1e-5
"""Tolerance outside [0, 1] that is attributed to float arithmetic, such as resizing."""
_EXACT = 2e-3
"""Tolerance for pixels at the limits of [0, 1] after denormalisation with the right constants."""
_SAMPLED, _LEVELS, _OFF_LEVEL = 50, 16, 0.02
"""Pixels look like 8-bit values if, in at least so many images (or all), they lie on at least so many levels per
channel, each no further off than this (of 255)."""
_CLIPPED_SHARE = 0.2
"""A larger fraction of values outside [0, 1] is another pixel space, and not a method that does not clip."""
_WHITENED = 0.1
"""Correlation of neighbouring pixels below which images resemble noise or whitened images."""
_ENOUGH = 1_000_000
"""Number of values of which ``_CENTRE`` is taken, at most twice as many; torch's quantile takes 16 million at most."""
_ASK = "(--normalised MEAN/STD or a name; in Python normalised=)"


class Space(NamedTuple):
    """How a user states the space of their pixels."""

    normalised: Normalisation | None = None
    """Constants that were applied to pixels in [0, 1] and are undone; None: the pixels lie in [0, 1]."""
    clip: bool = False
    """Whether pixels outside [0, 1] are clipped; otherwise they are refused."""


def stated_space(normalised: Constants | None, clip: bool, own: Normalisation) -> Space:
    """The space that ``normalised``, constants or text such as ``half``, states; ``own``: the dataset's constants."""
    found = None if normalised is None else stated_constants(normalised, own, "normalised")
    return Space(None if found == KNOWN["none"] else found, clip)


def unit_pixels(images: torch.Tensor, space: Space) -> tuple[torch.Tensor, list[Note]]:
    """Pixels as uint8, or as float32 in [0, 1], and what was found.

    ``images``: (N, 3, H, W) of any real type.  Raises :class:`BadValue` for values that are in another space than
    stated, are not finite, have lost their scale or are all black.
    """
    if images.dtype == torch.bool:
        raise BadValue("images are booleans, expected uint8 or float pixels.", "multiply them by 255 as uint8")
    if images.dtype.is_floating_point:
        return _from_floats(images, space)
    return _from_integers(images, space)


def _from_integers(images: torch.Tensor, space: Space) -> tuple[torch.Tensor, list[Note]]:
    low, high = (int(value) for value in images.aminmax())
    name = str(images.dtype).removeprefix("torch.")
    if space.normalised not in (None, KNOWN["bytes"]):
        raise BadValue(
            f"images are {name} but declared as normalised; normalised pixels are floats.",
            "leave out --normalised (in Python normalised=)",
        )
    if low < 0 or high > 255:
        raise BadValue(
            f"{name} images range from {low} to {high}, expected 0 to 255.",
            "scale them to 8 bits: (images // 256).astype('uint8') for 16 bits"
            if low >= 0 and high < 2**16
            else "give uint8 from 0 to 255, or float in [0, 1]",
        )
    return images.to(torch.uint8), list(eight_bit_notes(low, high, f"images: {name}"))


def eight_bit_notes(low: int, high: int, what: str) -> Iterator[Note]:
    """Notes on the range of 8-bit pixels; raises :class:`BadValue` for black ones and for those that lost their scale.

    ``what``: whose range it is, for messages.
    """
    _require_light(low, high, white=255)
    yield Note(f"{what}, {low} to {high}")
    yield from _doubts(low / 255, high / 255)


def _from_floats(images: torch.Tensor, space: Space) -> tuple[torch.Tensor, list[Note]]:
    name, eps = str(images.dtype).removeprefix("torch."), torch.finfo(images.dtype).eps
    images = images.float()
    if not bool(images.isfinite().all()):
        raise BadValue("images contain values that are not finite.", "check how they were generated")
    low, high = (float(value) for value in images.aminmax())
    notes = [Note(f"images: {name}, {_range(low, high)}")]
    applied, tolerance = space.normalised, max(_FLOAT_ERROR if space.normalised is None else _ROUNDING, eps)
    if applied is not None:
        _require_applied(images, low, high, applied)
        notes += _whitened(images)
        images = _undone(images, applied)
        low, high = (float(value) for value in images.aminmax())
        notes.append(Note(f"undone: {spelled(applied)}; pixels {_range(low, high)}"))
    _require_light(low, high, white=1)
    outside = int(((images < -tolerance) | (images > 1 + tolerance)).sum()) / images.numel()  # share of the values
    if outside and (not space.clip or outside > _CLIPPED_SHARE):
        if applied is None:
            raise _other_space(images, low, high, outside)
        raise _not_undone(low, high, outside, applied)
    if space.clip:
        notes.append(Note(f"clipped to [0, 1]: {100 * outside:.2g} % of the values"))
    images, low, high = images.clamp(0, 1), max(low, 0.0), min(high, 1.0)
    return images, [*notes, *(list(_doubts(low, high)) or _pressed(images, low, high))]


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _undone(images: torch.Tensor, applied: Normalisation) -> torch.Tensor:
    mean = torch.tensor(applied.mean).view(1, 3, 1, 1)
    return images * torch.tensor(applied.std).view(1, 3, 1, 1) + mean


def _require_light(low: float, high: float, white: int) -> None:
    """Raise for images that are black, or nearly so as their scale was lost; ``white`` is 255 or 1."""
    if high == low == 0:
        raise BadValue("All images are black.", "check how they were generated or saved")
    if 0 < high <= 1 < white or 0 < high < _LOST:
        raise BadValue(
            f"All pixels are at most {high:.3g}, where white is {white}: the images have lost their scale, "
            f"{'by conversion of [0, 1] to integers' if white > 1 else 'by division by 255 twice'}.",
            "multiply by 255 before the conversion to uint8" if white > 1 else "multiply the images by 255",
        )


def _doubts(low: float, high: float) -> Iterator[Note]:
    if high < _DARK:
        yield Note(f"the brightest pixel is {high:.3g} of 1: the images are nearly black", doubtful=True)
    elif high - low < _NARROW:
        yield Note(
            f"pixels span only {low:.3g} to {high:.3g} of [0, 1], as after a wrong or repeated scaling", doubtful=True
        )


def _pressed(images: torch.Tensor, low: float, high: float) -> Iterator[Note]:
    """A doubt about floats from ``low`` to ``high`` of which a few extreme ones press all others together."""
    values = images.flatten()[:: max(1, images.numel() // _ENOUGH)]
    first, last = values.quantile(torch.tensor([(1 - _CENTRE) / 2, (1 + _CENTRE) / 2])).tolist()
    if last - first < _FLAT * (high - low):
        yield Note(
            f"{100 * _CENTRE:.0f} % of the values lie in {first:.2g} to {last:.2g}: the contrast is low, as after "
            "scaling normalised pixels by their extremes instead of undoing their constants",
            doubtful=True,
        )


def _other_space(images: torch.Tensor, low: float, high: float, outside: float) -> BadValue:
    """The error for undeclared floats outside [0, 1], with the space that they lie in as far as that is certain."""
    fact = f"Float images range from {low:.3g} to {high:.3g}, expected [0, 1]"
    if low >= 0 and 20 < high <= 255:
        return BadValue(f"{fact}; 0 to 255 are 8-bit values.", "divide by 255, or give --normalised bytes")
    if _is_half(low, high):
        return BadValue(
            f"{fact}; [-1, 1] is the space of diffusion models and of Normalize(0.5, 0.5).",
            "give --normalised half (in Python normalised='half'), which computes (x + 1) / 2",
        )
    if name := _fitting_constants(images):
        return BadValue(
            f"{fact}; they fit exactly pixels normalised with {spelled(KNOWN[name])}.",
            f"give --normalised {name} (in Python normalised={name!r})",
        )
    if _is_half(2 * low, 2 * high):
        return BadValue(
            f"{fact}; pixels of [0, 1] less 0.5 have this range.",
            "if 0.5 was subtracted, give --normalised 0.5/1 (in Python normalised='0.5/1')",
        )
    if max(-low, high - 1) < _DARK and outside < _CLIPPED_SHARE:
        return BadValue(
            f"{fact}; {100 * outside:.2g} % of the values are outside.",
            "clip them with --clip (in Python clip=True) if the method does not clip its images",
        )
    return BadValue(
        f"{fact}, and no known normalisation has these limits.",
        "undo what was applied to the images (whitening, scaling, own constants) and give pixels in [0, 1]; "
        f"constants only if they are known {_ASK}",
    )


def _not_undone(low: float, high: float, outside: float, applied: Normalisation) -> BadValue:
    fact = (
        f"Without the normalisation {spelled(applied)} the images range from {low:.3g} to {high:.3g}, expected [0, 1]; "
        f"{100 * outside:.2g} % of the values are outside."
    )
    clip = "; if these are right and the method does not clip its images, clip them with --clip (in Python clip=True)"
    return BadValue(
        fact,
        f"give the mean and std that they were normalised with {_ASK}{clip if outside <= _CLIPPED_SHARE else ''}",
    )


def _is_half(low: float, high: float) -> bool:
    """Whether a range is [-1, 1], with the overshoot of diffusion models that do not clip."""
    return -1.15 <= low <= -0.85 and 0.85 <= high <= 1.15


def _fitting_constants(images: torch.Tensor) -> str | None:
    """The name of the first known constants that the images fit exactly."""
    return next((name for name, known in KNOWN.items() if name != "none" and _fits(images, known)), None)


def _fits(images: torch.Tensor, applied: Normalisation) -> bool:
    """Whether undoing constants gives exact pixels: channels from 0 to 1, as of clipped images, or 8-bit values."""
    lowest, highest = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    if max(_undone(lowest, applied).abs().max(), (_undone(highest, applied) - 1).abs().max()) <= _EXACT:
        return True
    some = 255 * _undone(images[:: max(1, len(images) // _SAMPLED)], applied)
    levels = some.round()
    few = min(len(levels[:, channel].unique()) for channel in range(3)) < _LEVELS
    return not few and bool((some - levels).abs().max() <= _OFF_LEVEL)


def _require_applied(images: torch.Tensor, low: float, high: float, applied: Normalisation) -> None:
    """Raise for images that visibly were not normalised with these constants."""
    drop = "leave out --normalised (in Python normalised=)"
    if any(mean > 0 for mean in applied.mean) and low >= 0 and high <= 1:
        raise BadValue(
            f"Images are declared as normalised with {spelled(applied)}, but already lie in [0, 1] "
            f"({_range(low, high)}).",
            drop,
        )
    if _is_half(low, high) and max(applied.std) < 0.4:
        raise BadValue(
            f"Images are declared as normalised with {spelled(applied)}, but range from {low:.3g} to {high:.3g}: "
            "[-1, 1] is the space of diffusion models and of Normalize(0.5, 0.5).",
            "give --normalised half (in Python normalised='half'), or undo the constants and give pixels in [0, 1]",
        )
    name = _fitting_constants(images)
    if name and not _fits(images, applied):
        raise BadValue(
            f"Images are declared as normalised with {spelled(applied)}, but they fit exactly {spelled(KNOWN[name])}.",
            f"give --normalised {name} (in Python normalised={name!r})",
        )


def _whitened(images: torch.Tensor) -> Iterator[Note]:
    """A note on images whose neighbouring pixels are uncorrelated, which mean and std do not undo."""
    if images.shape[-1] < 2:
        return
    centred = images - images.mean((2, 3), keepdim=True)
    left, right = centred[..., :-1], centred[..., 1:]
    power = torch.sqrt((left**2).mean() * (right**2).mean())
    correlation = float((left * right).mean() / power) if float(power) else 1.0
    if correlation < _WHITENED:
        yield Note(
            f"neighbouring pixels are uncorrelated ({correlation:.2f}), as in noise and after ZCA whitening, which "
            "constants do not undo",
            doubtful=True,
        )
