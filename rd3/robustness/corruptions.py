"""Common corruptions of test images at severities 1 to 5.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019; hendrycks/robustness, ``ImageNet-C/create_c/make_cifar_c.py`` (images of up to 32 pixels),
``make_tinyimagenet_c.py`` (up to 64) and ``make_imagenet_c.py`` (larger), whose constants these are.

Deviations: random numbers are those of a stream of each image, corruption and severity, not of one global generator.
Corrupted images are not saved as JPEG of quality 85, as the two scripts for more than 32 pixels do: images are cleaner
here, and accuracies cannot be compared with published ones of Tiny-ImageNet-C and ImageNet-C.  Of the benchmark's
fifteen corruptions six are left out (:data:`LEFT_OUT`).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rd3.errors import BadValue, UnknownName
from rd3.lazy import torch
from rd3.registry import did_you_mean
from rd3.seeding import generator

SEVERITIES = (1, 2, 3, 4, 5)


def _normal(shape: tuple[int, ...], stream: torch.Generator) -> np.ndarray:
    return torch.randn(shape, generator=stream, dtype=torch.float64).numpy()


def _uniform(shape: tuple[int, ...], stream: torch.Generator) -> np.ndarray:
    return torch.rand(shape, generator=stream, dtype=torch.float64).numpy()


def _gaussian_noise(x: np.ndarray, c: float, stream: torch.Generator) -> np.ndarray:
    return x + c * _normal(x.shape, stream)


def _shot_noise(x: np.ndarray, c: float, stream: torch.Generator) -> np.ndarray:
    return np.asarray(torch.poisson(torch.from_numpy(x * c), generator=stream)) / c


def _impulse_noise(x: np.ndarray, c: float, stream: torch.Generator) -> np.ndarray:
    """Salt and pepper in single channels, as ``skimage.util.random_noise``."""
    changed, white = _uniform(x.shape, stream) <= c, _uniform(x.shape, stream) <= 0.5
    return np.where(changed, white.astype(np.float64), x)


def _speckle_noise(x: np.ndarray, c: float, stream: torch.Generator) -> np.ndarray:
    return np.asarray(x + x * c * _normal(x.shape, stream))


def _gaussian_blur(x: np.ndarray, c: float, _stream: torch.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, sigma=(c, c, 0), mode="nearest", truncate=4.0))


def disk_kernel(radius: float, alias_blur: float) -> np.ndarray:
    """A disk of ones, normalised, then blurred by a small Gaussian against aliasing."""
    from scipy.ndimage import correlate1d

    reach, size = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * alias_blur**2))
    weights /= weights.sum()
    return np.asarray(correlate1d(correlate1d(disk, weights, 0, mode="mirror"), weights, 1, mode="mirror"))


def _defocus_blur(x: np.ndarray, c: tuple[float, float], _stream: torch.Generator) -> np.ndarray:
    from scipy.ndimage import correlate

    return np.asarray(correlate(x, disk_kernel(*c)[..., None], mode="mirror"))


def _zoom_blur(x: np.ndarray, c: tuple[float, float], _stream: torch.Generator) -> np.ndarray:
    """Mean of the image and of enlarged ones; ``c``: end of the range of factors, exclusive, and its step."""
    factors = np.arange(1, *c)
    enlarged = (_zoomed(x, float(factor)) for factor in factors)
    return np.asarray(sum(enlarged, start=x) / (len(factors) + 1))


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of the image, enlarged to its size."""
    along = _enlarging(len(x), factor)
    return np.asarray((along @ x.transpose(2, 0, 1) @ along.T).transpose(1, 2, 0))


@functools.cache
def _enlarging(side: int, factor: float) -> np.ndarray:
    """(side, side): linear interpolation along one axis, as ``scipy.ndimage.zoom`` of the centre, cut to the side."""
    from scipy.ndimage import zoom

    kept = int(np.ceil(side / factor))
    top = (side - kept) // 2
    large: np.ndarray = zoom(np.eye(side)[top : top + kept], (factor, 1), order=1)
    trim = (len(large) - side) // 2
    return large[trim : trim + side]


def _brightness(x: np.ndarray, c: float, _stream: torch.Generator) -> np.ndarray:
    """Adds to the value of HSV; hue and saturation stay, so that all channels of a pixel grow by one factor."""
    value: np.ndarray = x.max(axis=2, keepdims=True)
    raised: np.ndarray = np.clip(value + c, 0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def _contrast(x: np.ndarray, c: float, _stream: torch.Generator) -> np.ndarray:
    means: np.ndarray = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - means) * c + means)


def _pixelate(x: np.ndarray, c: float, _stream: torch.Generator) -> np.ndarray:
    from PIL import Image

    image, side = _picture(x), len(x)
    small = int(side * c)
    coarse = image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
    return np.asarray(coarse) / 255.0


def _jpeg_compression(x: np.ndarray, c: int, _stream: torch.Generator) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=c)
    return np.asarray(Image.open(file)) / 255.0


def _picture(x: np.ndarray) -> Any:
    """A PIL image of pixels (H, W, 3) that are multiples of 1/255."""
    from PIL import Image

    return Image.fromarray(np.round(255 * x).astype(np.uint8))


class Corruption(NamedTuple):
    """A corruption and its constants at severities 1 to 5."""

    apply: Callable[[np.ndarray, Any, torch.Generator], np.ndarray]
    """Takes pixels (H, W, 3) float64 in [0, 1], a constant and a random stream; values are clipped afterwards."""
    at_32: Sequence[Any]
    at_64: Sequence[Any]
    larger: Sequence[Any]
    quantised: bool = False
    """Whether ``apply`` returns multiples of 1/255 up to rounding, which must be rounded and not truncated."""

    def constants(self, side: int) -> Sequence[Any]:
        """By severity, for images of this side in pixels."""
        return self.at_32 if side <= 32 else self.at_64 if side <= 64 else self.larger


_ZOOM_SMALL = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
_ZOOM_LARGE = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_DEFOCUS_32 = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
_DEFOCUS_64 = ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1))
_DEFOCUS_LARGE = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

KNOWN: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(
        _gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.04, 0.08, 0.12, 0.15, 0.18), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        _impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.01, 0.02, 0.05, 0.08, 0.14), (0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus_blur": Corruption(_defocus_blur, _DEFOCUS_32, _DEFOCUS_64, _DEFOCUS_LARGE),
    "zoom_blur": Corruption(_zoom_blur, _ZOOM_SMALL, _ZOOM_SMALL, _ZOOM_LARGE),
    "brightness": Corruption(
        _brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        _contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), (0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    "pixelate": Corruption(
        _pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25), quantised=True
    ),
    "jpeg_compression": Corruption(
        _jpeg_compression, (80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7), quantised=True
    ),
    "speckle_noise": Corruption(
        _speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.25, 0.3, 0.35), (0.15, 0.2, 0.35, 0.45, 0.6)
    ),
    "gaussian_blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (0.5, 0.75, 1, 1.25, 1.5), (1, 2, 3, 4, 6)),
}
"""By the name of its file in CIFAR-10-C; the last two are the benchmark's extra ones, which its mean leaves out."""

EXTRA = ("speckle_noise", "gaussian_blur")
STANDARD = tuple(name for name in KNOWN if name not in EXTRA)
"""Those of the benchmark's fifteen that are computed here."""
LEFT_OUT: Mapping[str, str] = {
    "glass_blur": "swaps pixels one by one",
    "motion_blur": "needs ImageMagick",
    "snow": "needs ImageMagick",
    "frost": "needs photographs of frost",
    "fog": "needs a fractal generator",
    "elastic_transform": "needs OpenCV",
}
"""Corruptions of the benchmark that are not computed, with the reason."""


def corruption(name: str) -> Corruption:
    """Look up a corruption; raises :class:`BadValue` for one that is left out, :class:`UnknownName` for others."""
    if name in LEFT_OUT:
        raise BadValue(f"Corruption {name} is not computed: it {LEFT_OUT[name]}.", f"use {', '.join(STANDARD)}")
    if name not in KNOWN:
        raise UnknownName(f"There is no corruption {name!r}.", did_you_mean(name, list(KNOWN)))
    return KNOWN[name]


def corrupted(images: torch.Tensor, name: str, severity: int, positions: Sequence[int], seed: int = 0) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 after a corruption; severity 0 leaves them as they are.

    ``positions``: places of the images in their split.  The noise of an image depends on its place, the corruption,
    the severity and the seed alone, not on the batch.  As in the source, values are truncated to 8 bits.
    """
    if severity == 0:
        return images
    how = corruption(name)
    if severity not in SEVERITIES:
        raise BadValue(f"Severity is {severity!r}, expected 0 to {SEVERITIES[-1]}.", "0 leaves images as they are")
    constant = how.constants(images.shape[-1])[severity - 1]
    found = []
    for image, position in zip(images.permute(0, 2, 3, 1).numpy(), positions, strict=True):
        stream = generator(seed, "corruption", name, severity, int(position))
        values = 255 * np.clip(how.apply(image / 255.0, constant, stream), 0, 1)
        found.append((np.round(values) if how.quantised else values).astype(np.uint8))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()
