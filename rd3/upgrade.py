"""Recipes of older formats in today's form: pure functions on their JSON.

Format 1 said ``bf16`` where format 2 says ``auto`` (it was the default, also where hardware emulates it), and had the
settings of losses and augmentations among a protocol's own fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rd3.values import digest

FORMAT = 2

_LOSS_SETTINGS = {"kl": ("temperature", "scale_t2"), "mse_gt": ("gamma",), "ce": ("hard_mix",)}
_ALL_SETTINGS = ("temperature", "scale_t2", "gamma", "hard_mix")
_STEPS = ("factor", "antialias", "flip", "mix")


def upgraded(plain: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's JSON in today's format; what is in it already comes back equal.

    ``keys`` leads from the old keys of parents to their new ones; others stay.
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
    """The sections of a preset of format 1, values by name, with today's names.

    What was left out had a default, and each section stands on top of ``all``; so what became ``augmentation`` and
    ``loss`` is worked out for either kind of student, and stands in ``all`` where both agree.
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
    """Values by name: what has a new name under it, the steps of the augmentation, the loss with its own settings."""
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
"""Names of format 1 that a protocol no longer has, and what to write."""


_NEUTRAL: dict[str, dict[str, Any]] = {
    "training": {"zeta": 1.0},
    "protocol": {"warmup_epochs": 0, "hybrid": "logits"},
}
"""Neutral values in format 1, by part of a recipe."""


def former_key(plain: Mapping[str, Any]) -> str:
    """The key that a recipe of format 1 had; fields that equalled their neutral value were left out of it."""
    pruned = {name: value for name, value in plain.items() if name != "format"}
    for name, neutral in (("statistics", []), ("init", None)):
        if pruned.get("kind") == "set" and name in pruned and pruned[name] == neutral:
            del pruned[name]
    for part, left_out in _NEUTRAL.items():
        if isinstance(pruned.get(part), Mapping):
            kept = {name: value for name, value in pruned[part].items() if left_out.get(name, ...) != value}
            pruned[part] = kept
    return digest(pruned)


def ran_precision(plain: Mapping[str, Any]) -> str | None:
    """What a recipe of format 1 ran at; None where nothing was trained."""
    if plain.get("kind") == "teacher":
        return plain.get("precision") if plain.get("training") is not None else None
    return plain["protocol"].get("precision", "bf16") if plain.get("kind") == "evaluation" else None


def _precision(old: str | None) -> str | None:
    return "auto" if old == "bf16" else old


def _protocol(old: Mapping[str, Any]) -> dict[str, Any]:
    loss, moved = old.get("loss", "kl"), (*_ALL_SETTINGS, *_STEPS)
    if not isinstance(loss, str) or not isinstance(old.get("factor"), int):  # no format ever looked like that
        return dict(old)
    new = {name: value for name, value in old.items() if name not in moved}
    new["precision"] = _precision(old.get("precision", "bf16"))
    settings = {name: old[name] for name in _LOSS_SETTINGS.get(loss, _ALL_SETTINGS) if name in old}
    new["loss"] = {loss: settings}
    new["augmentation"] = _augmentation(old)
    return new


def _augmentation(old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps in the order in which they were always taken; a factor of 1 left out shuffle and crop."""
    factor, steps = old["factor"], []
    if factor > 1:
        steps.append({"patch_shuffle": {"grid": factor}})
        steps.append({"resized_crop": {"min_area": 1 / factor, "antialias": old.get("antialias", True)}})
    if old.get("flip", True):
        steps.append({"flip": {"probability": 0.5}})
    if old.get("mix", "cutmix") == "cutmix":
        steps.append({"cutmix": {}})
    return steps
