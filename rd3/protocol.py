"""The post-evaluation protocol: every choice that affects a student's accuracy, as one frozen value.

A *preset* (``presets/*.yaml``) holds values for every student and rules for some; :func:`resolve_protocol` turns it
into a fully resolved :class:`EvalProtocol`: the values by student, dataset and IPC, the patches by dataset, the batch
capped at the set's size.  Only resolved values enter a key.

Grids, sweeps and users set protocol values by name: a field (``epochs``), a setting of the loss (``temperature``), or a
setting of an augmentation (``resized_crop.min_area``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from rd3.augmentations import AUGMENTATIONS
from rd3.component import Component, value_by_name
from rd3.errors import BadValue, DataCorrupt, UnknownName, Unsupported
from rd3.foreign_files import read_text
from rd3.losses import LOSSES, Loss
from rd3.preset_rules import Case, Condition, Rule
from rd3.registry import Registry, did_you_mean
from rd3.upgrade import RENAMED
from rd3.values import Frozen, canonical, first_mistake, mistakes_in_field, neutral, without_neutral
from rd3.yaml_numbers import load_with_numbers

Precision = Literal["auto", "bf16", "fp32"]
T = TypeVar("T")
_Registered = tuple[tuple[str, Any], ...]
"""Names of losses or augmentations, with what is registered under them."""


class EvalProtocol(Frozen):
    """A resolved protocol.  Source: Tables 8 and 9 of the RD3 paper; what these do not state is marked so."""

    epochs: int = Field(ge=1)
    """Passes of the student over the synthetic set."""
    batch_size: int = Field(ge=1)
    """Images per optimizer step; at most the size of the set."""
    accumulation_steps: int = neutral(1, ge=1)
    """Parts of a batch, of two images or more, whose gradients are accumulated before an optimizer step; batch
    normalisation sees one part."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``adamw``, or ``sgd`` with momentum ``beta1``."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate at the start of the schedule."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay (not stated in the paper)."""
    weight_decay_on: Literal["matrices", "all"] = neutral("matrices")
    """Parameters with weight decay: ``matrices``, the weights of more than one dimension; or ``all`` (not stated in the
    paper)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of AdamW's first moment; momentum of ``sgd``."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay rate of AdamW's second moment; unused by ``sgd``."""
    zeta: float = Field(gt=0)
    """Learning-rate smoothing: the rate of epoch i is lr * (1 + cos(pi i / (zeta epochs))) / 2."""
    schedule: Literal["cosine", "linear", "multistep", "two_part"] = neutral("cosine")
    """Shape of the learning rate over the epochs: the ``cosine`` of zeta; ``linear``, 1 - i / (zeta epochs);
    ``multistep``, lower by ``drop_factor`` at each of ``drop_at``; or ``two_part``, the cosine of zeta for five sixths
    of the epochs and then a line to zero (EDC)."""
    drop_at: tuple[float, ...] = neutral((2 / 3, 5 / 6))
    """Shares of the epochs after which ``multistep`` multiplies the learning rate; unused by other schedules."""
    drop_factor: float = neutral(0.2, gt=0, lt=1)
    """Factor of each drop of ``multistep``; unused by other schedules."""
    warmup_epochs: int = neutral(0, ge=0)
    """Epochs of linear warm-up to lr; the schedule takes the remaining ones (not stated in the paper)."""
    warmup_start: float | None = neutral(None, gt=0, lt=1)
    """Factor on lr in the first warm-up epoch, from which lr is reached in the epoch after the warm-up, as by torch's
    LinearLR; None: the factors are i / warmup_epochs, from 1."""
    labels: Literal["soft", "hard"] = "soft"
    """Targets of the student: ``soft`` labels, or ``hard`` class labels."""
    soft_labels: Literal["online", "once", "stored", "own"] = neutral("online")
    """When teachers label: every view in training (``online``); each image once, without augmentation (``once``); or
    every view, rounded and reused as labels that FKD stores beforehand (``stored``; no file is written).  ``own``: the
    soft labels that the set comes with, one for each image, without a teacher."""
    label_dtype: Literal["fp16", "fp32"] = neutral("fp16")
    """Type of stored logits."""
    label_top_k: int | None = neutral(None, ge=2)
    """Largest logits stored of each label, the others having probability 0 (LPQLD's ``MR-k``); None: all."""
    label_epochs: int | None = neutral(None, ge=1)
    """Epochs whose labels are stored; training reuses their views (LPLD).  None: all epochs."""
    label_reuse: Literal["batches", "epochs"] = neutral("batches")
    """What training draws from the stored ``label_epochs``, uniformly with replacement: full ``batches``, or whole
    ``epochs``."""
    loss: Component
    """A registered loss with its settings, such as ``{kl: {temperature: 20.0, scale_t2: false}}``."""
    augmentation: tuple[Component, ...]
    """Registered augmentations with their settings, in order; one that mixes images comes last."""
    teacher_mode: Literal["eval", "batch"] = "eval"
    """Batch normalisation of teachers: by running statistics (``eval``) or by those of the batch (not stated in the
    paper)."""
    hybrid: Literal["logits", "balanced", "softmax"] = neutral("logits")
    """How several teachers are combined: ``logits`` averages logits; ``balanced`` first scales each teacher's logits of
    a batch to the same norm; ``softmax`` averages softmaxes at the loss's temperature (not stated in the paper)."""
    extra_student_forward: bool = False
    """Run an additional, gradient-free student pass per step, which updates BatchNorm statistics, as the released RDED
    loop does (not stated in the paper)."""
    ema: float = neutral(0.0, ge=0, lt=1)
    """Decay rate per step of an exponential moving average of the parameters, which is tested in place of the student;
    BatchNorm statistics are the student's own.  0: none (not stated in the paper)."""
    test_resize: int = neutral(0, ge=0)
    """Side in pixels to which test images are resized before the centre crop; 0: as the dataset resizes them (not
    stated in the paper)."""
    precision: Precision = "auto"
    """Precision of teacher and student passes; master weights, statistics and losses stay fp32.  ``auto``: bf16 if the
    device supports it in hardware, else fp32."""
    test_epochs: tuple[int, ...] = ()
    """Additional epochs (1-based) after which to test; diagnostics, never the headline metric."""

    @property
    def taught(self) -> bool:
        """Whether the labels are those of teachers."""
        return self.labels == "soft" and self.soft_labels != "own"

    @property
    def own_labels(self) -> bool:
        """Whether the labels are soft ones that the set comes with."""
        return self.labels == "soft" and self.soft_labels == "own"

    @property
    def mixes_images(self) -> bool:
        """Whether an augmentation mixes images of a batch, as CutMix does."""
        return any(AUGMENTATIONS.get(step.name).mixes for step in self.augmentation)

    def require_labels_of(self, soft_label_kind: str | None) -> None:
        """Raise :class:`BadValue` if the labels are a set's own, but the set has none (``soft_label_kind`` None)."""
        if self.own_labels and soft_label_kind is None:
            message = "The protocol has soft_labels 'own', but the set has no soft labels of its own."
            raise BadValue(message, "use soft_labels 'once' with a teacher, or import the set with its soft labels")

    def require_fit(self, dataset: str, resolution: int, classes: int) -> None:
        """Raise :class:`BadValue` if a value does not fit the resolution of a dataset or its number of classes."""
        if 0 < self.test_resize < resolution:
            message = f"test_resize is {self.test_resize}, but test images are cropped to {resolution} pixels."
            raise BadValue(message, f"use at least {resolution}, or 0")
        if self.label_top_k is not None and self.label_top_k >= classes:
            raise BadValue(
                f"label_top_k is {self.label_top_k}, {dataset} has {classes} classes.",
                "leave it out to store the logits of all classes",
            )

    def value(self, name: str) -> Any:
        """The plain value of a field or setting by its name; None if this protocol has no such setting."""
        return value_by_name(self.model_dump(mode="json"), name)

    def contradictions(self) -> list[str]:
        """Contradictions between fields, as sentences without a full stop.

        Raises :class:`UnknownName` for a loss or augmentation that is not registered.
        """
        found = []
        loss, steps = (
            LOSSES.get(self.loss.name),
            {step.name: AUGMENTATIONS.get(step.name) for step in self.augmentation},
        )
        if loss.labels != self.labels:
            found.append(f"loss {self.loss.name!r} learns from {loss.labels} labels, not from {self.labels} ones")
        if self.hybrid == "softmax" and "temperature" not in self.loss.settings:
            found.append(f"hybrid 'softmax' needs a temperature, which loss {self.loss.name!r} does not have")
        if list(self.drop_at) != sorted({share for share in self.drop_at if 0 < share < 1}):
            found.append(f"drop_at {list(self.drop_at)} are not increasing shares between 0 and 1")
        found += [
            f"{name} needs {_NEEDED[name]}"
            for name in _unread_by_schedule(dict(self))
            if getattr(self, name) != _default(name)
        ]
        found += _label_contradictions(self, needs_logits=loss.of_teacher == "logits")
        late = [epoch for epoch in self.test_epochs if not 1 <= epoch <= self.epochs]
        found += [f"test_epochs {late} are outside 1..{self.epochs}"] if late else []
        names = [step.name for step in self.augmentation]
        found += [f"augmentation {name!r} is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        found += [
            f"augmentation {name!r} mixes images, so nothing can come after it"
            for name in names[:-1]
            if steps[name].mixes
        ]
        return found


_STORAGE = ("label_dtype", "label_top_k", "label_epochs")
"""Fields that describe stored labels."""
_MULTISTEP, _WARMUP = "schedule 'multistep'", "warmup_epochs"
_NEEDED = {"drop_at": _MULTISTEP, "drop_factor": _MULTISTEP, "warmup_start": _WARMUP}
"""What each of these fields of the learning rate needs to have an effect."""


def _label_contradictions(protocol: EvalProtocol, needs_logits: bool) -> list[str]:
    """Contradictions between the fields of soft labels.

    ``needs_logits``: the loss uses the teachers' logits, not only their softmax at its temperature.
    """
    regime, loss = protocol.soft_labels, f"which loss {protocol.loss.name!r} does not learn from alone"
    once, per_image, pruned = regime == "once", regime in ("once", "own"), protocol.label_epochs is not None
    changed = sorted(name for name in _STORAGE if getattr(protocol, name) != _default(name))
    need = "need" if len(changed) > 1 else "needs"
    shortened = regime != "online" and protocol.label_top_k is not None
    wrong = {
        f"soft_labels {regime!r} needs soft labels": regime != "online" and protocol.labels == "hard",
        f"{' and '.join(changed)} {need} soft_labels 'once' or 'stored'": changed and regime in ("online", "own"),
        "label_epochs needs soft_labels 'stored'": once and pruned,
        "label_reuse needs label_epochs": protocol.label_reuse != "batches" and not pruned,
        f"label_epochs is not below the {protocol.epochs} epochs of training": (
            protocol.label_epochs is not None and protocol.label_epochs >= protocol.epochs
        ),
        "soft_labels 'once' has no batches for teacher_mode 'batch'": once and protocol.teacher_mode == "batch",
        f"soft_labels {regime!r} labels mixed images by mixed probabilities, {loss}": (
            per_image and protocol.mixes_images and needs_logits
        ),
        f"label_top_k keeps probabilities at one temperature, {loss}": shortened and needs_logits,
    }
    return [sentence for sentence, holds in wrong.items() if holds]


def _default(name: str) -> Any:
    return EvalProtocol.model_fields[name].default


def number_type(name: str) -> type[int] | type[float] | None:
    """``int`` or ``float`` if a protocol's field or setting is a number, else None."""
    kinds = set(get_args(protocol_names()[name].annotation) or [protocol_names()[name].annotation]) - {type(None)}
    return next((kind for kind in (int, float) if kinds == {kind}), None)


def unresolved(protocol: EvalProtocol) -> str:
    """Name of the first loss or augmentation whose settings are not fully resolved; empty if all are.

    Components that are not registered here, such as those of a missing plugin, are skipped.
    """
    for component in (protocol.loss, *protocol.augmentation):
        step = component is not protocol.loss
        registry = AUGMENTATIONS if step else LOSSES
        if component.name not in registry:
            continue
        kind = registry.get(component.name)
        try:
            settings = kind.Settings.model_validate_json(json.dumps(component.settings), strict=True)
        except ValidationError:
            return component.name
        without_effect = step and AUGMENTATIONS.get(component.name).resolve(settings, 1) is None
        if without_effect or canonical(without_neutral(settings)) != canonical(component.settings):
            return component.name
    return ""


def protocol_names() -> Mapping[str, FieldInfo]:
    """Every name by which a protocol can be set, with its field: fields, settings of losses, ``step.setting``."""
    losses = tuple((name, LOSSES.get(name)) for name in LOSSES)
    return _names_with(losses, tuple((name, AUGMENTATIONS.get(name)) for name in AUGMENTATIONS))


@functools.cache
def _names_with(losses: _Registered, steps: _Registered) -> Mapping[str, FieldInfo]:
    """Worked out once for what is registered: it is asked for every name of a file and every score of a table."""
    found = EvalProtocol.model_fields | UnresolvedValues.model_fields
    for _name, loss in losses:
        found |= loss.Settings.model_fields
    for step, augmentation in steps:
        fields = augmentation.Settings.model_fields
        found |= {f"{step}.{name}": field for name, field in fields.items()}
    return MappingProxyType(found)


class UnresolvedValues(Frozen):
    """Values by name that resolve to fields; they are not part of a resolved protocol."""

    image_steps: int = Field(default=1, ge=1)
    """Images that the student sees: epochs are image_steps / |S|, rounded, at least one."""


_NOT_OF_LOSS = EvalProtocol.model_fields.keys() | UnresolvedValues.model_fields.keys()


def _with_epochs(changes: Mapping[str, Any], set_size: int, where: str) -> dict[str, Any]:
    """``changes`` with epochs in place of ``image_steps``; raises :class:`BadValue` if both are given and disagree."""
    found = dict(changes)
    if "image_steps" not in found:
        return found
    steps = found.pop("image_steps")
    wrong = mistakes_in_field(UnresolvedValues, {}, "image_steps", steps)
    if wrong:
        raise BadValue(f"{where}: image_steps: {wrong[0]}.", "give a number of images")
    epochs = max(1, round(steps / set_size))
    if found.setdefault("epochs", epochs) != epochs:
        raise BadValue(
            f"{where}: image_steps {steps} is {epochs} epochs of {set_size} images, but epochs is {found['epochs']}.",
            "give one of the two",
        )
    return found


def _as_json(changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``changes`` as JSON has them; numbers and arrays of NumPy or torch, and ranges, become Python's own."""

    def python(value: Any) -> Any:
        if isinstance(value, Component):
            return value.model_dump()
        return list(value) if isinstance(value, range) else value.tolist()

    found = {}
    for name, value in changes.items():
        try:
            found[name] = json.loads(json.dumps(value, default=python))
        except (TypeError, ValueError, AttributeError):
            what = f"{name} is of type {type(value).__name__} or holds what JSON cannot"
            raise BadValue(f"{where}: {what}.", "give text, a number, a list or a mapping") from None
    return found


class Preset(Frozen):
    """A protocol as rules: values by name for all students, and for some students, datasets and IPC."""

    name: str
    source: str
    """Publication of its values."""
    deviates: tuple[str, ...] = ()
    """What is done otherwise than in the publication, as sentences without a full stop."""
    reduces: str | None = None
    """The preset that this one reduces; its results are not compared with the paper."""
    all: dict[str, Any] = {}
    """Values for every student."""
    same_network: dict[str, Any] = {}
    """Values if student and teacher have the same architecture, on top of ``all``."""
    other_network: dict[str, Any] = {}
    """Values if they have different architectures, on top of ``all``."""
    rules: tuple[Rule, ...] = ()
    """Values under conditions, on top of those above; later rules take precedence."""
    incomplete: tuple[str, ...] = ()
    """What a protocol cannot express of the published one; such a preset is not resolved."""

    @property
    def ordered(self) -> tuple[Rule, ...]:
        """All values under conditions as rules, the later ones taking precedence."""
        by_network = (True, self.same_network), (False, self.other_network)
        sections = (Rule(when=Condition(same_network=same), then=values) for same, values in by_network if values)
        return (*sections, *self.rules)

    @property
    def facts(self) -> frozenset[str]:
        """The fields of a :class:`Case` that its rules ask for, besides ``same_network``."""
        return frozenset().union(*(rule.when.facts for rule in self.rules))

    def applying(self, case: Case) -> Iterator[Mapping[str, Any]]:
        """Values by name that apply to a case, in order; each takes precedence over those before it.

        Raises :class:`BadValue` if a rule asks for a fact that is not known.
        """
        yield self.all
        yield from (rule.then for rule in self.ordered if rule.when.holds(case))

    def field(self, name: str, case: Case) -> Any:
        """The value of a field in a case, or None if no values set it."""
        given = [rule.then[name] for rule in self.ordered if name in rule.then and rule.when.holds(case)]
        return given[-1] if given else self.all.get(name)

    def possible_values(self, name: str) -> list[Any]:
        """All values that a field may take, without repeats."""
        given = [self.all, *(rule.then for rule in self.ordered)]
        return list({json.dumps(values[name]): values[name] for values in given if name in values}.values())


@functools.cache
def presets() -> dict[str, Preset]:
    """The presets that ship with RD3, by name."""
    entries = sorted(files("rd3").joinpath("presets").iterdir(), key=lambda entry: entry.name)
    texts = (entry.read_text() for entry in entries if entry.name.endswith(".yaml"))
    return {found.name: found for found in (Preset.model_validate(yaml.safe_load(text)) for text in texts)}


def preset(name: str) -> Preset:
    """The preset that ships under ``name``."""
    return _find(name, presets())


def user_presets(folder: Path) -> dict[str, Preset]:
    """A user's own presets by name: ``<name>.yaml`` in ``folder``; hidden files, as editors write, are none."""
    return {path.stem: read_preset(path) for path in sorted(folder.glob("[!.]*.yaml"))}


def preset_reader(folder: Path) -> Callable[[str], Preset]:
    """A function that finds shipped presets and those in ``folder`` by name; shipped names take precedence.

    It raises :class:`UnknownName` for other names.
    """
    return lambda name: _find(name, presets() if name in presets() else {**user_presets(folder), **presets()})


def read_preset(path: Path) -> Preset:
    """Read and check one preset file; raises :class:`BadValue` with the first mistake."""
    try:
        plain = load_with_numbers(read_text(path))
        json.dumps(plain)
        found = Preset.model_validate(plain)
    except OSError as error:
        raise BadValue(f"{path} cannot be read: {error.strerror}.", "make it a readable file, or remove it") from None
    except DataCorrupt as error:
        raise BadValue(error.message, error.fix) from None
    except yaml.YAMLError as error:
        raise BadValue(f"{path} is not YAML ({str(error).splitlines()[0]}).", "fix it or remove it") from None
    except RecursionError:
        raise BadValue(f"{path} is nested too deeply.", "fix it or remove it") from None
    except ValidationError as error:
        raise BadValue(f"{path} is not a valid protocol: {first_mistake(error)}.", "fix it or remove it") from None
    except (ValueError, LookupError, AttributeError):  # such as 2024-13-45, `!!bool x`, and a value in itself
        raise BadValue(f"{path} holds a value that cannot be read.", "fix it or remove it") from None
    except TypeError:  # YAML also has dates
        what = "a value that is neither text nor a number, list or mapping"
        raise BadValue(f"{path} holds {what}.", "put a date in quotes") from None
    if found.name != path.stem:
        raise BadValue(f"{path} calls its protocol {found.name!r}.", f"name the file {found.name}.yaml")
    if found.reduces is not None and found.reduces not in presets():
        fix = f"leave it out, or use one of: {', '.join(presets())}"
        raise BadValue(f"{path} reduces {found.reduces!r}, which is not a built-in protocol.", fix)
    for_all = found.all.keys() | (found.same_network.keys() & found.other_network.keys())
    for_all |= {name for rule in found.rules for name in rule.then}
    if "epochs" not in for_all:
        raise BadValue(f"{path} sets no epochs for all students.", "add them: `all: {epochs: 400}`")
    if "augmentation" not in for_all:
        fix = "add it: `all: {augmentation: [patch_shuffle, resized_crop, flip, cutmix]}`"
        raise BadValue(f"{path} sets no augmentation for all students.", fix)
    _check_rules(found, path)
    return found


def _check_rules(found: Preset, path: Path) -> None:
    """Check the names that rules set, as a rule may never apply where a file is tried out."""
    known = list(protocol_names())
    for place, rule in enumerate(found.rules):
        for name, value in rule.then.items():
            if name not in known or name in UnresolvedValues.model_fields:
                raise BadValue(f"{path}: rules.{place}: a protocol has no field {name!r}.", did_you_mean(name, known))
            wrong = mistakes_in(name, value)
            if wrong:
                raise BadValue(f"{path}: rules.{place}: {name}: {wrong[0]}, got {value!r}.", "fix it or remove it")


def _find(name: str, known: dict[str, Preset]) -> Preset:
    if name not in known:
        raise UnknownName(f"There is no protocol {name!r}.", did_you_mean(name, list(known)))
    return known[name]


def resolve_protocol(
    preset_or_name: str | Preset,
    *,
    factor: int,
    same_network: bool,
    set_size: int,
    student: str | None = None,
    dataset: str | None = None,
    classes: int | None = None,
    ipc: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EvalProtocol:
    """Resolve a preset, or the shipped one of that name, for one student and one set.

    ``factor`` is the dataset's; ``same_network`` says whether student and label teacher have the same architecture;
    ``set_size`` is |S| in images.  ``student``, ``dataset``, the number of ``classes`` and images per class, ``ipc``,
    are needed if the preset has rules that depend on them.  ``overrides`` are values by name that a grid or a user
    sets; they take precedence over the preset, but the batch size is still capped at |S|.  Hard labels among them imply
    the loss ``ce`` unless one is named; ``image_steps`` implies the epochs.

    Raises :class:`UnknownName` for an unknown name, :class:`BadValue` for an invalid or contradictory value or a fact
    that is not given, and :class:`Unsupported` for an incomplete preset.
    """
    chosen = preset(preset_or_name) if isinstance(preset_or_name, str) else preset_or_name
    where = f"Protocol {chosen.name}"
    if chosen.incomplete:
        missing = "; ".join(chosen.incomplete)
        raise Unsupported(f"{where} is incomplete, as protocols cannot express {missing}.", "use another protocol")
    changed = _with_epochs(_as_json(overrides or {}, where), set_size, where)
    changed = implied_by(changed) | changed
    values: dict[str, Any] = {"loss": Component(name="kl")}
    for some in (*chosen.applying(Case(same_network, student, dataset, classes, ipc)), changed):
        values = _with_changes(values, some, where)
    for name in {*_unread_by_schedule(values)} - changed.keys():
        values.pop(name, None)  # for the schedule of other students, datasets or IPC
    unset = [name for name in ("epochs", "batch_size", "zeta", "augmentation") if name not in values]
    if unset:
        raise BadValue(f"{where} sets no {unset[0]} for this student, dataset and IPC.", "add it to `all`")
    batch_size = values["batch_size"]
    values["batch_size"] = min(batch_size, set_size) if isinstance(batch_size, int) else batch_size  # refused below
    loss = _settings(LOSSES, values["loss"], where)
    values["loss"] = Component(name=values["loss"].name, settings=without_neutral(loss))
    steps = (_resolved_step(step, factor, where) for step in values["augmentation"])
    values["augmentation"] = [step for step in steps if step is not None]
    text = json.dumps(values, default=Component.model_dump)
    resolved = _validated(lambda: EvalProtocol.model_validate_json(text, strict=True), where)
    if resolved.batch_size < 2 <= set_size:
        fix = "set batch_size to at least 2"
        raise BadValue(f"{where}: batches have one image; batch normalisation needs two.", fix)
    wrong = resolved.contradictions()
    if wrong:
        raise BadValue(f"{where}: {'; '.join(wrong)}.", "change one of them")
    return resolved


def implied_by(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What hard labels among ``changes`` imply: the loss ``ce``, and the fields of soft labels at their defaults."""
    if changes.get("labels") != "hard":
        return {}
    return {name: _default(name) for name in _unread_label_fields(changes)} | {"loss": "ce"}


def unsupported_loss(values: Mapping[str, Any]) -> str:
    """Why the loss among values by name is unsupported; empty if it is not, or none is named."""
    named = values.get("loss")
    name = next(iter(named), None) if isinstance(named, Mapping) else named
    why = LOSSES.unsupported().get(name, "") if isinstance(name, str) else ""
    return why and f"loss {name!r} is unsupported: {why}"


def applicable_values(chosen: Preset, case: Case, values: Mapping[str, Any]) -> dict[str, Any]:
    """The ``values`` by name of a search proposal that apply to the proposed loss, without settings of other losses.

    ``chosen``: the preset that they are set on top of.  Hard labels imply the loss ``ce`` if the proposed one takes
    soft labels.  Fields of stored labels are left out where none are stored.
    """
    names = ("labels", "soft_labels", "label_epochs", "schedule", "warmup_epochs")
    given = {name: value for name in names if (value := chosen.field(name, case)) is not None}
    unused = (*_unread_label_fields({**given, **values}), *_unread_by_schedule({**given, **values}))
    found = {name: value for name, value in values.items() if name not in unused}
    if found.get("labels") == "hard" and _registered_loss(found.get("loss") or "kl").labels != "hard":
        found["loss"] = "ce"
    fields = {name: value for name, value in found.items() if name in _NOT_OF_LOSS}
    known = _registered_loss(fields.get("loss") or chosen.field("loss", case) or "kl").Settings.model_fields
    return {name: value for name, value in found.items() if name in fields or "." in name or name in known}


def _unread_by_schedule(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of the learning rate that have no effect beside ``values``."""
    there = {_MULTISTEP: values.get("schedule") == "multistep", _WARMUP: bool(values.get("warmup_epochs"))}
    return tuple(name for name, needed in _NEEDED.items() if not there[needed])


def _unread_label_fields(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of soft labels that have no place beside ``values``."""
    if values.get("labels") == "hard":
        return ("soft_labels", "label_reuse", *_STORAGE)
    if values.get("soft_labels", "online") in ("online", "own"):
        return ("label_reuse", *_STORAGE)
    pruned = values["soft_labels"] == "stored" and values.get("label_epochs") is not None
    return () if pruned else ("label_reuse", "label_epochs")


def _registered_loss(value: Any) -> Loss:
    """The loss that the value of the field ``loss`` names."""
    return LOSSES.get(Component.model_validate(value).name)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name with ``changes`` on top; a change of the loss drops the settings of the former one."""
    return unchanged_by(values, changes) | dict(changes)


def unchanged_by(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name that ``changes`` leaves in force."""
    settings = {name for name in values if name not in _NOT_OF_LOSS and "." not in name}
    gone = changes.keys() | (settings if "loss" in changes else set())
    return {name: value for name, value in values.items() if name not in gone}


_COMPONENTS: TypeAdapter[tuple[Component, ...]] = TypeAdapter(tuple[Component, ...])


def _validated(read: Callable[[], T], where: str, prefix: str = "") -> T:
    """What ``read`` gives; the first mistake of pydantic's becomes a :class:`BadValue`."""
    try:
        return read()
    except ValidationError as error:
        first = error.errors()[0]
        place = (prefix + ".".join(str(part) for part in first["loc"])).rstrip(".")
        raise BadValue(f"{where}{': ' + place if place else ''}: {first['msg']}.") from None


def _with_changes(values: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` (fields; loss and augmentation as components) with values by name on top.

    Another loss, or a list of augmentations, starts from its own defaults; the same loss keeps its settings.
    """
    fields = {name: value for name, value in changes.items() if name in EvalProtocol.model_fields}
    if "loss" in fields:
        loss = _validated(lambda: Component.model_validate(fields["loss"]), where, "loss.")
        before = values["loss"].settings if loss.name == values["loss"].name else {}
        fields["loss"] = Component(name=loss.name, settings=before | loss.settings)
    if "augmentation" in fields:
        fields["augmentation"] = _validated(
            lambda: _COMPONENTS.validate_json(json.dumps(fields["augmentation"])), where, "augmentation."
        )
    values = values | fields
    for name in [name for name in changes if name not in fields]:
        _check_name(name)
        step, _dot, setting = name.rpartition(".")
        which = "augmentation" if step else "loss"
        values[which] = (_with_step if step else _with_setting)(values.get(which, ()), name, {setting: changes[name]})
    return values


def _check_name(name: str) -> None:
    known = protocol_names()
    if name not in known:
        fix = RENAMED.get(name) or did_you_mean(name, list(known))
        raise UnknownName(f"A protocol has no field {name!r}.", fix)


def _with_setting(loss: Component, name: str, setting: dict[str, Any]) -> Component:
    if name in UnresolvedValues.model_fields:
        raise BadValue(f"A preset does not set {name!r}, which depends on the set.", "set it in the grid")
    if name not in LOSSES.get(loss.name).Settings.model_fields:
        others = [other for other in LOSSES if name in LOSSES.get(other).Settings.model_fields]
        fix = f"leave it out, or use loss {' or '.join(others)}"
        raise BadValue(f"Loss {loss.name!r} has no setting {name!r}.", fix)
    return Component(name=loss.name, settings=loss.settings | setting)


def _with_step(steps: tuple[Component, ...], name: str, setting: dict[str, Any]) -> tuple[Component, ...]:
    step = name.rpartition(".")[0]
    if step not in [each.name for each in steps]:
        raise BadValue(f"The augmentation has no {step!r}, whose {name!r} is set.", f"list {step} in `augmentation`")
    return tuple(
        Component(name=each.name, settings=each.settings | setting) if each.name == step else each for each in steps
    )


def _resolved_step(step: Component, factor: int, where: str) -> Component | None:
    """With nothing open; None where it has no effect."""
    given = _settings(AUGMENTATIONS, step, where, f"{step.name}.")
    settings = AUGMENTATIONS.get(step.name).resolve(given, factor)
    return None if settings is None else Component(name=step.name, settings=without_neutral(settings))


def _settings(registry: Registry[Any], given: Component, where: str, prefix: str = "") -> Frozen:
    """The settings of a loss or augmentation, read strictly: neither "100" nor true is a number."""
    model: type[Frozen] = registry.get(given.name).Settings
    for name in given.settings:
        if name not in model.model_fields:
            what = f"{registry.kind.capitalize()} {given.name!r} has no setting {name!r}."
            raise UnknownName(what, did_you_mean(name, list(model.model_fields)))
    return _validated(lambda: model.model_validate_json(json.dumps(given.settings), strict=True), where, prefix)


def mistakes_in(name: str, value: Any) -> list[str]:
    """Mistakes in one value, without type coercion; raises :class:`UnknownName` for an unknown name.

    A setting that several losses have is valid if it is valid for one of them.
    """
    _check_name(name)
    if name in EvalProtocol.model_fields:
        found = mistakes_in_field(EvalProtocol, _any_values(), name, value)
        if not found and name == "loss":
            _registered_loss(value)
        if not found and name == "augmentation":
            for step in value:
                AUGMENTATIONS.get(Component.model_validate(step).name)
        return found
    if name in UnresolvedValues.model_fields:
        return mistakes_in_field(UnresolvedValues, {}, name, value)
    step, _dot, setting = name.rpartition(".")
    owners = [AUGMENTATIONS.get(step).Settings] if step else [LOSSES.get(loss).Settings for loss in LOSSES]
    by_owner = [mistakes_in_field(owner, {}, setting, value) for owner in owners if setting in owner.model_fields]
    return min(by_owner, key=len)


@functools.cache
def _any_values() -> dict[str, Any]:
    """Valid values of all fields, in which one field is checked."""
    return resolve_protocol("rd3", factor=1, same_network=True, set_size=10**9).model_dump(mode="json")


def reductions(preset_or_name: str | Preset, resolved: EvalProtocol, case: Case) -> dict[str, tuple[float, float]]:
    """Fields that are below their published value, as (used, published); currently only epochs can be reduced.

    ``case``: what the protocol was resolved for.
    """
    chosen = preset(preset_or_name) if isinstance(preset_or_name, str) else preset_or_name
    published = (preset(chosen.reduces) if chosen.reduces else chosen).field("epochs", case)
    return {"epochs": (resolved.epochs, published)} if published is not None and resolved.epochs < published else {}
