"""Prompts of text-to-image models, one for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rd3.datasets import DatasetInfo
from rd3.errors import ClassOrderError

_WNID = re.compile(r" \(n\d{8}\)$")
FIX = "list one prompt for each class, in the order of the dataset's classes"


def class_prompts(prompts: Sequence[str] | None, info: DatasetInfo) -> tuple[str, ...]:
    """The prompts of a dataset, in label order: its class names, or ``prompts``, e.g. ("a photo of a tench", ...).

    Of names that ImageNet has twice, ``crane (n02012849)``, only the name is used.  Raises :class:`ClassOrderError` for
    a list of another length, and for a prompt that names another class instead of its own while the other's prompt does
    not name it, or is the same: a sign of another class order.
    """
    if prompts is None:
        return tuple(_WNID.sub("", name) for name in info.class_names)
    if len(prompts) != info.num_classes:
        raise ClassOrderError(f"There are {len(prompts)} prompts, {info.name} has {info.num_classes} classes.", FIX)
    # id and name of each class, as sequences of words
    names = [{_words(one) for one in pair} for pair in zip(info.class_ids, info.class_names, strict=True)]
    known = {name: label for label, own in enumerate(names) for name in own}
    named = [_parts(prompt) & known.keys() for prompt in prompts]
    for label, prompt in enumerate(prompts):
        if not named[label] or named[label] & names[label]:
            continue
        other = known[max(named[label], key=len)]  # "tree frog" rather than "frog"
        if not named[other] & names[other] or prompts[other] == prompt:
            raise ClassOrderError(
                f"The prompt of class {label}, {info.class_names[label]!r}, is {prompt!r}, which names class {other}, "
                f"{info.class_names[other]!r}.",
                FIX,
            )
    return tuple(prompts)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower().replace("_", " ")))


def _parts(prompt: str) -> set[tuple[str, ...]]:
    """All sequences of consecutive words in a prompt."""
    words = _words(prompt)
    return {words[first:last] for first in range(len(words)) for last in range(first + 1, len(words) + 1)}
