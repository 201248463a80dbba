"""Convert recipes of older formats to the current one: pure functions on their JSON.

Format 1 has ``bf16`` where format 2 has ``auto`` (``bf16`` was the default, even if emulated), and has the settings of
losses and augmentations among the protocol's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rd3.values import digest

FORMAT = 2
REKEYED = ("teacher", "evaluation")
"""Kinds whose keys may differ between the formats even where those of their parents do not; the number of the format is
in no key."""

_LOSS_SETTINGS = {"kl": ("temperature", "scale_t2"), "mse_gt": ("gamma",), "ce": ("hard_mix",)}
_ALL_SETTINGS = ("temperature", "scale_t2", "gamma", "hard_mix")
_STEPS = ("factor", "antialias", "flip", "mix")


def upgraded(plain: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's JSON in the current format; recipes that already have it are returned unchanged.

    ``keys`` maps old keys of parents to new ones; other keys stay.
    """
    new, keys = dict(plain), keys or {}
    if new.get("format", 1) >= FORMAT:
        return new
    new["format"] = FORMAT
    for name in ("teachers", "statistics"):
        if isinstance(new.get(name), list | tuple):
            new[name] = [keys.get(key, key) for key in new[name]]
    for name in ("teacher", "set", "init"):
        if isinstance(new.get(name), str):
            new[name] = keys.get(new[name], new[name])
    if new.get("kind") == "teacher" and new.get("training") is not None:
        new["precision"] = _precision(new.get("precision"))
    if new.get("kind") == "evaluation" and isinstance(new.get("protocol"), Mapping):
        new["protocol"] = _protocol(new["protocol"])
    return new


def upgraded_sections(
    all: Mapping[str, Any], same_network: Mapping[str, Any], other_network: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The sections of a preset of format 1, values by name, with the current names.

    Omitted values had defaults, and each section extends ``all``; so the new ``augmentation`` and ``loss`` are computed
    for both kinds of students and moved to ``all`` if both agree.
    """
    whole = [_named({**all, **section}) for section in (same_network, other_network)]
    moved = ("augmentation", "loss")
    shared = {name: whole[0][name] for name in moved if whole[0].get(name) == whole[1].get(name) and name in whole[0]}
    found = {"all": {name: value for name, value in _named(all).items() if name not in moved} | shared}
    for section, old, new in zip(("same_network", "other_network"), (same_network, other_network), whole, strict=True):
        own = {name: value for name, value in _named(old).items() if name not in moved}
        found[section] = own | {name: new[name] for name in moved if name in new and name not in shared}
    return found


def _named(old: Mapping[str, Any]) -> dict[str, Any]:
    """Values under their new names, with the steps of the augmentation and the loss with its settings.

    When a preset is resolved, a step without settings gets them from the dataset's factor, and one without effect goes.
    """
    new = {name: value for name, value in old.items() if name not in (*_ALL_SETTINGS, *_STEPS, "loss")}
    if new.get("precision") == "bf16":
        new["precision"] = "auto"
    loss = old.get("loss", "ce" if old.get("labels") == "hard" else "kl")
    settings = {name: old[name] for name in _LOSS_SETTINGS.get(loss, _ALL_SETTINGS) if name in old}
    if "loss" in old or settings:
        new["loss"] = {loss: settings}
    shuffle: Any = "patch_shuffle"
    crop = {"antialias": old["antialias"]} if "antialias" in old else {}
    if "factor" in old:
        shuffle, crop = {"patch_shuffle": {"grid": old["factor"]}}, {"min_area": 1 / old["factor"], **crop}
    steps = [shuffle, {"resized_crop": crop} if crop else "resized_crop"]
    steps += ["flip"] if old.get("flip", True) else []
    steps += ["cutmix"] if old.get("mix", "cutmix") == "cutmix" else []
    new["augmentation"] = steps
    return new


RENAMED = {
    "factor": "`factor` is two settings now: patch_shuffle.grid and resized_crop.min_area",
    "antialias": "`antialias` is resized_crop.antialias now",
    "flip": "list the steps in `augmentation`; its probability is flip.probability",
    "mix": "list the steps in `augmentation`, cutmix or mixup last, or neither",
}
"""Protocol fields of format 1 that no longer exist, with their replacement."""


_NEUTRAL_IN_SETS: dict[str, Any] = {"statistics": [], "init": None}
_NEUTRAL: dict[str, dict[str, Any]] = {"training": {"zeta": 1.0}, "protocol": {"warmup_epochs": 0, "hybrid": "logits"}}
"""Neutral values in format 1: fields of sets, and those of parts of any recipe."""


def former_key(plain: Mapping[str, Any]) -> str:
    """The key of a recipe in format 1, which omits fields equal to their neutral value."""
    neutral = _NEUTRAL_IN_SETS if plain.get("kind") == "set" else {}
    pruned = {name: value for name, value in plain.items() if name != "format" and neutral.get(name, ...) != value}
    for part, neutral in _NEUTRAL.items():
        if isinstance(pruned.get(part), Mapping):
            pruned[part] = {name: value for name, value in pruned[part].items() if neutral.get(name, ...) != value}
    return digest(pruned)


def ran_precision(plain: Mapping[str, Any]) -> str | None:
    """The precision that a recipe of format 1 ran at; None if it involves no training."""
    if plain.get("kind") == "teacher":
        return plain.get("precision") if plain.get("training") is not None else None
    return plain["protocol"].get("precision", "bf16") if plain.get("kind") == "evaluation" else None


def _precision(old: str | None) -> str | None:
    return "auto" if old == "bf16" else old


def _protocol(old: Mapping[str, Any]) -> dict[str, Any]:
    loss, moved = old.get("loss", "kl"), (*_ALL_SETTINGS, *_STEPS)
    if not isinstance(loss, str) or not isinstance(old.get("factor"), int):  # not valid in any format
        return dict(old)
    new = {name: value for name, value in old.items() if name not in moved}
    new["precision"] = _precision(old.get("precision", "bf16"))
    settings = {name: old[name] for name in _LOSS_SETTINGS.get(loss, _ALL_SETTINGS) if name in old}
    new["loss"] = {loss: settings}
    new["augmentation"] = _augmentation(old)
    return new


def _augmentation(old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The augmentation steps in their fixed order; factor 1 means neither shuffle nor crop."""
    factor, steps = old["factor"], []
    if factor > 1:
        steps.append({"patch_shuffle": {"grid": factor}})
        steps.append({"resized_crop": {"min_area": 1 / factor, "antialias": old.get("antialias", True)}})
    if old.get("flip", True):
        steps.append({"flip": {"probability": 0.5}})
    if old.get("mix", "cutmix") == "cutmix":
        steps.append({"cutmix": {}})
    return steps
