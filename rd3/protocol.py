"""The post-evaluation protocol: every choice that can move a student's accuracy, as one frozen value.

A *preset* (``presets/*.yaml``) is a rule; :func:`resolve_protocol` turns it into an :class:`EvalProtocol` in which
nothing is left open: the schedule and batch size by student, the shuffle factor by dataset, the batch capped at the
set's size.  Only resolved values enter a key.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rd3.errors import BadValue, UnknownName
from rd3.neutral import neutral
from rd3.registry import did_you_mean


class EvalProtocol(BaseModel):
    """A resolved protocol.  Sources: paper Tables 8 and 9; decisions the paper leaves open are named ``open``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """On tensors with more than one dimension only (open: 0.01)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    zeta: float = Field(gt=0)
    """Learning-rate smoothing: rate of epoch i is lr * (1 + cos(pi i / (zeta epochs))) / 2."""
    warmup_epochs: int = neutral(0, ge=0)
    """First epochs in which the rate climbs linearly to lr; the cosine takes those that are left (open: none)."""
    labels: Literal["soft", "hard"] = "soft"
    loss: str = "kl"
    """A registered loss; ``ce`` with hard labels."""
    temperature: float = Field(default=20.0, gt=0)
    """Of teacher and student in the KL (open: 20)."""
    scale_t2: bool = False
    """Multiply the KL by temperature squared (open: no, as in the released code)."""
    gamma: float = Field(default=0.025, ge=0)
    """Weight of the hard-label term in MSE-GT."""
    hard_mix: Literal["weighted", "base"] = "weighted"
    """Hard labels under CutMix: both labels by area of the clipped box, or the base image's alone (open: weighted)."""
    factor: int = Field(ge=1)
    """Patch-shuffle grid side; the resized crop draws areas from (1/factor, 1).  1 switches both off."""
    antialias: bool = True
    """In the resized crop (open: on)."""
    flip: bool = True
    mix: Literal["cutmix", "none"] = "cutmix"
    teacher_mode: Literal["eval", "batch"] = "eval"
    """``batch``: teachers normalise with the statistics of the batch (open: eval)."""
    hybrid: Literal["logits", "balanced", "softmax"] = neutral("logits")
    """How several teachers label together: mean of logits; the same after every teacher's logits of a batch are scaled
    to one norm; mean of softmaxes at ``temperature`` (open: logits)."""
    extra_student_forward: bool = False
    """The released RDED loop's second, gradient-free student pass, which moves BN statistics (open: off)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of teacher and student passes; master weights, statistics and losses stay fp32."""
    test_epochs: tuple[int, ...] = ()
    """Further epochs (1-based) at which to test; diagnostics, never the headline."""

    @model_validator(mode="after")
    def _consistent(self) -> EvalProtocol:
        found = []
        if self.labels == "hard" and self.loss != "ce":
            found.append(f"labels 'hard' need loss 'ce', not {self.loss!r}")
        if self.labels == "soft" and self.loss == "ce":
            found.append("loss 'ce' needs labels 'hard'")
        if self.hybrid == "softmax" and self.loss == "mse_gt":
            found.append("hybrid 'softmax' has no raw logits, which loss 'mse_gt' compares")
        late = [epoch for epoch in self.test_epochs if not 1 <= epoch <= self.epochs]
        if late:
            found.append(f"test_epochs {late} are outside 1..{self.epochs}")
        if found:
            raise ValueError("; ".join(found))
        return self


class Preset(BaseModel):
    """A protocol as a rule: fields for all, and fields by whether student and teacher are the same network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    reduces: str | None = None
    """The preset whose published settings this one cuts short; its results get no paper value."""
    all: dict[str, Any] = {}
    same_network: dict[str, Any] = {}
    other_network: dict[str, Any] = {}


@functools.cache
def presets() -> dict[str, Preset]:
    """The presets that ship with RD3, by name."""
    found: dict[str, Preset] = {}
    for entry in sorted(files("rd3").joinpath("presets").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            preset = Preset.model_validate(yaml.safe_load(entry.read_text()))
            found[preset.name] = preset
    return found


def preset(name: str) -> Preset:
    """The preset that ships under ``name``."""
    return _known(name, presets())


PresetOf = Callable[[str], Preset]
"""Name to preset; raises :class:`UnknownName`."""


def user_presets(folder: Path) -> dict[str, Preset]:
    """A user's own presets by name: ``<name>.yaml`` in ``folder``, none where there is no such folder."""
    return {path.stem: read_preset(path) for path in sorted(folder.glob("*.yaml"))}


def preset_reader(folder: Path) -> PresetOf:
    """Finds the presets that ship and those in ``folder``; a name that ships cannot be taken by another."""
    return lambda name: presets()[name] if name in presets() else _known(name, {**user_presets(folder), **presets()})


def read_preset(path: Path) -> Preset:
    """One preset file; raises :class:`BadValue` with the first mistake."""
    try:
        found = Preset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadValue(f"{path} is not YAML ({str(error).splitlines()[0]}).", "mend it or remove it") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadValue(f"{path} is no protocol: {place}: {first['msg']}.", "mend it or remove it") from None
    if found.name != path.stem:
        raise BadValue(f"{path} calls its protocol {found.name!r}.", f"name the file {found.name}.yaml")
    if found.reduces is not None and found.reduces not in presets():
        fix = f"leave it out, or use one of: {', '.join(presets())}"
        raise BadValue(f"{path} reduces {found.reduces!r}, which is no protocol that RD3 brings itself.", fix)
    by_network = found.same_network.keys() & found.other_network.keys() if found.reduces else set()
    if "epochs" not in found.all.keys() | by_network:
        raise BadValue(f"{path} says no epochs for all students.", "add them: `all: {epochs: 400}`")
    return found


def _known(name: str, known: dict[str, Preset]) -> Preset:
    if name not in known:
        raise UnknownName(f"There is no protocol {name!r}.", did_you_mean(name, list(known)))
    return known[name]


def resolve_protocol(
    rule: str | Preset,
    *,
    factor: int,
    same_network: bool,
    set_size: int,
    overrides: dict[str, Any] | None = None,
) -> EvalProtocol:
    """Resolve a preset, or the shipped one of that name, for one student and one set.

    ``factor`` is the dataset's; ``same_network`` says whether student and label teacher are one architecture;
    ``set_size`` is |S| in images.  ``overrides`` are fields that a grid or a user sets; they win over the preset,
    and the batch is capped at |S| all the same.
    """
    rule = preset(rule) if isinstance(rule, str) else rule
    values = {"factor": factor, **rule.all, **(rule.same_network if same_network else rule.other_network)}
    changed = dict(overrides or {})
    unknown = [field for field in changed if field not in EvalProtocol.model_fields]
    if unknown:
        raise UnknownName(
            f"A protocol has no field {unknown[0]!r}.", did_you_mean(unknown[0], list(EvalProtocol.model_fields))
        )
    if changed.get("labels") == "hard":
        changed.setdefault("loss", "ce")
    values |= changed
    values["batch_size"] = min(values.get("batch_size", 1), set_size)
    try:
        return EvalProtocol.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadValue(f"Protocol {rule.name}{': ' + place if place else ''}: {first['msg']}.") from None


def reductions(rule: str | Preset, resolved: EvalProtocol) -> dict[str, tuple[float, float]]:
    """What a run does less of than published: field to (made, published).  Today only epochs can be cut."""
    rule = preset(rule) if isinstance(rule, str) else rule
    published = preset(rule.reduces).all["epochs"] if rule.reduces else rule.all["epochs"]
    return {"epochs": (resolved.epochs, published)} if resolved.epochs < published else {}
