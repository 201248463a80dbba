"""The scores of a grid by dataset, IPC, setting and method: what rankings, average ranks and claims compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rd3.component import changes_text
from tracking.report.query import split_overrides
from tracking.report.scores import Score


class Setting(NamedTuple):
    """How a method is evaluated, besides on which dataset and at which IPC."""

    protocol: str
    labels: str
    student: str
    teacher: str
    changed: str
    """Changed and varied fields of the protocol, and label teachers."""


class Block(NamedTuple):
    """Where methods are compared; a block of the Friedman test."""

    dataset: str
    ipc: int
    setting: Setting


def setting_and_method(score: Score) -> tuple[Setting, str]:
    """The setting of a score, and its method with the settings that are the method's own."""
    own, shared = split_overrides(score.method, score.overrides)
    shared.pop("labels", None)
    changed = changes_text({**shared, **score.varied})
    setting = Setting(score.protocol, score.labels, score.student, score.teacher, changed)
    return setting, f"{score.method} ({changes_text(own)})" if own else score.method


def method_text(score: Score) -> str:
    """The method of a score, with the settings that are the method's own."""
    return setting_and_method(score)[1]


def by_block(scores: Sequence[Score], *, planned: bool = False) -> dict[Block, dict[str, Score]]:
    """Scores by block and method, in the order of the grid; evaluations at two blocks count at the first.

    Only scores with results, or with ``planned`` all that are supported.
    """
    found: dict[Block, dict[str, Score]] = {}
    for score in scores:
        if score.keys if planned else score.by_seeds:
            setting, method = setting_and_method(score)
            found.setdefault(Block(score.dataset, score.ipc, setting), {})[method] = score
    firsts: dict[tuple[tuple[str, ...], ...], Block] = {}  # by the keys of the evaluations of each method
    for block, methods in found.items():
        firsts.setdefault(tuple(score.keys if planned else score.evaluations for score in methods.values()), block)
    return {block: found[block] for block in firsts.values()}


def complete_blocks(scores: Sequence[Score]) -> tuple[list[str], list[dict[str, Score]]]:
    """All methods, and the blocks at which every one of them has a result."""
    blocks = by_block(scores)
    methods = list(dict.fromkeys(name for found in blocks.values() for name in found))
    return methods, [found for found in blocks.values() if len(found) == len(methods)]
