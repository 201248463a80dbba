"""Constants that published code normalises pixels with, by name.  Does not load torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from rd3.errors import BadValue
from rd3.recipe import Normalisation
from rd3.registry import did_you_mean


def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    return Normalisation.model_validate({"mean": mean * (3 // len(mean)), "std": std * (3 // len(std))})


KNOWN: Mapping[str, Normalisation] = MappingProxyType(
    {
        # pixels in [0, 1], as torchvision's ToTensor gives them
        "none": _constants((0.0,), (1.0,)),
        # pixels in [-1, 1]: Normalize(0.5, 0.5), TensorFlow's Inception, diffusion models
        "half": _constants((0.5,), (0.5,)),
        # pixels from 0 to 255
        "bytes": _constants((0.0,), (1 / 255,)),
        # Caffe's models and the mode "caffe" of Keras, both for BGR: 0 to 255 minus ImageNet's mean; here as RGB
        "caffe": _constants((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,)),
        # torchvision's classifiers; RDED for CIFAR too
        "imagenet": _constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        # standard deviation over all pixels
        "cifar10": _constants((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        # kuangliu/pytorch-cifar, DC, SRe2L: the mean of each image's standard deviation
        "cifar10-2023": _constants((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        # weiaicunzai/pytorch-cifar100, G-VBSM and EDC (for CIFAR-10 too)
        "cifar100": _constants((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        # DC and DM for Tiny-ImageNet
        "tinyimagenet": _constants((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        # OpenAI's CLIP
        "clip": _constants((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        # DC and DM
        "svhn": _constants((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        "mnist": _constants((0.1307,), (0.3081,)),
        "fashionmnist": _constants((0.2861,), (0.3530,)),
    }
)
"""Normalisation of RGB pixels in [0, 1] by name; the comments name the code that uses it."""
_ALIASES = {"[0,1]": "none", "[-1,1]": "half", "0-255": "bytes", "[0,255]": "bytes"}
OWN = "dataset"
"""Name of the constants of the dataset at hand."""
EXPECTED = f"{OWN}, {', '.join(KNOWN)}, or MEAN/STD such as 0.485,0.456,0.406/0.229,0.224,0.225 or 0.5/0.5"


Constants = Normalisation | str | tuple[float | Sequence[float], float | Sequence[float]]
"""Constants as callers state them: the name or text of :func:`constants`, or a pair (mean, std)."""


def stated_constants(stated: Constants, own: Normalisation, name: str) -> Normalisation:
    """The constants of an argument ``name``; raises :class:`BadValue`.

    A pair has a number each for all channels, or one for each channel.
    """
    if isinstance(stated, Normalisation):
        return stated
    if isinstance(stated, str):
        return constants(stated, own)
    try:
        parts = [part if isinstance(part, Iterable) else [part] for part in stated]
        mean, std = (",".join(f"{float(value)!r}" for value in part) for part in parts)
    except (TypeError, ValueError):
        raise BadValue(f"{name} is {stated!r}.", "give a name such as 'imagenet', 'MEAN/STD', or (mean, std)") from None
    return constants(f"{mean}/{std}", own)


def constants(text: str, own: Normalisation) -> Normalisation:
    """The constants that ``text`` names or states; raises :class:`BadValue`.

    ``text``: ``dataset`` for ``own``, a name in :data:`KNOWN`, or ``MEAN/STD`` with one or three numbers each, of
    pixels in [0, 1].  ``[0,1]`` and ``[-1,1]`` name the range of the normalised pixels.
    """
    plain = "".join(text.split()).lower()
    plain = _ALIASES.get(plain, plain)
    if plain == OWN:
        return own
    if plain in KNOWN:
        return KNOWN[plain]
    if "/" not in plain:
        near = did_you_mean(plain, [OWN, *KNOWN])
        raise BadValue(f"There are no constants {text!r}.", near if near.startswith("did") else f"give {EXPECTED}")
    mean, _slash, std = plain.partition("/")
    found = _constants(_numbers(mean, text), _numbers(std, text))
    if min(found.std) <= 0:
        raise BadValue(f"Constants {text!r} have a standard deviation of {min(found.std):g}.", f"give {EXPECTED}")
    largest = {"mean": max(map(abs, found.mean)), "standard deviation": max(found.std)}
    of_bytes = [f"a {what} of {value:g}" for what, value in largest.items() if value > 1.5]
    if of_bytes:
        raise BadValue(
            f"Constants {text!r} have {of_bytes[0]}, expected those of pixels in [0, 1].",
            f"divide by 255: {_mean_slash_std(*([value / 255 for value in one] for one in (found.mean, found.std)))}",
        )
    return found


def _numbers(part: str, text: str) -> tuple[float, ...]:
    """One or three finite numbers from a side of ``text``; raises :class:`BadValue`."""
    try:
        values = tuple(float(value) for value in part.strip("()[]").split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise BadValue(f"Cannot read constants {text!r}.", f"give {EXPECTED}")
    return values


def option(normalisation: Normalisation) -> str:
    """The shortest text that :func:`constants` reads as these: a name, else ``MEAN/STD`` to eight digits."""
    names = (name for name, known in KNOWN.items() if known == normalisation)
    return next(names, _mean_slash_std(normalisation.mean, normalisation.std))


def spelled(normalisation: Normalisation) -> str:
    """The constants with their name, if known: ``imagenet (0.485,0.456,0.406/0.229,0.224,0.225)``."""
    name, text = option(normalisation), _mean_slash_std(normalisation.mean, normalisation.std)
    return text if name == text else f"{name} ({text})"


def _mean_slash_std(*parts: tuple[float, ...] | list[float]) -> str:
    """``MEAN/STD`` in the form that :func:`constants` reads."""
    return "/".join(",".join(f"{value:.8g}" for value in (part[:1] if len(set(part)) == 1 else part)) for part in parts)
