"""Prompts of text-to-image models, one for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rd3.datasets import DatasetInfo
from rd3.errors import ClassOrderError

FIX = "list one prompt for each class, in the order of the dataset's classes"


def class_prompts(prompts: Sequence[str] | None, info: DatasetInfo) -> tuple[str, ...]:
    """The prompts of a dataset, in label order: its class names, or ``prompts``, e.g. ("a photo of a tench", ...).

    Raises :class:`ClassOrderError` for a list of another length, and for a prompt that names another class but not its
    own, which is a sign of another class order.
    """
    if prompts is None:
        return info.class_names
    if len(prompts) != info.num_classes:
        raise ClassOrderError(f"There are {len(prompts)} prompts, {info.name} has {info.num_classes} classes.", FIX)
    # id and name of each class, as sequences of words
    names = [{_words(one) for one in pair} for pair in zip(info.class_ids, info.class_names, strict=True)]
    known = {name: label for label, own in enumerate(names) for name in own}
    for label, prompt in enumerate(prompts):
        named = _parts(prompt) & known.keys()
        if named and not named & names[label]:
            other = known[max(named, key=len)]  # "tree frog" rather than "frog"
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
