"""For authors of methods: a conformance suite, and a template to start from.

``check_method("mine", tmp=folder)`` runs the method on digits with a small untrained teacher, in seconds, without a
test framework.  Expensive settings are replaced by the method's ``quick`` ones.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rd3.augment import to_unit
from rd3.datasets import Dataset, DatasetInfo, Roots, Split, open_dataset
from rd3.diffusion.derivation import derivation_of
from rd3.errors import RD3Error, Unsupported
from rd3.lazy import nn, torch
from rd3.methods import METHODS, Block, Cost, Method, resolve_settings
from rd3.models import NormalisedNetwork, build_network
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.planning.sets import plan_set
from rd3.recipe import (
    BackboneRecipe,
    Data,
    DerivedRecipe,
    Normalisation,
    Recipe,
    SetRecipe,
    StatisticsRecipe,
    TeacherRecipe,
    TeacherTraining,
    TrainingDynamicsRecipe,
)
from rd3.seeding import derive, generator, scoped, scoped_globals
from rd3.synthesis import synthesize
from rd3.synthetic_set import Manifest, SetOnDisk, SyntheticSet
from rd3.values import digest

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone

_IPC = 2
_TRIAL_SIZES: dict[str, dict[str, Any]] = {
    "dit": {"width": 16, "depth": 2, "heads": 2, "patch": 8},
    "text-to-image": {
        "autoencoder": [8, 8],
        "unet": [8, 8],
        "heads": 2,
        "text_width": 8,
        "text_depth": 1,
        "length": 32,
    },
}
"""By family, sizes of the diffusion backbones that methods are tried with; untrained, like their teachers."""
_TRIAL_TRAINING = TeacherTraining(epochs=2, batch_size=64, lr=0.02, momentum=0.9, weight_decay=0.0, crop="none")
"""Training of the trial teachers, which are untrained; it runs only where a method uses training dynamics."""
_MAX_DIFFERENT = 0.01
"""Fraction of pixels that may differ if blocks are generated together."""


class CheckResult(NamedTuple):
    """Result of one check."""

    name: str
    ok: bool
    detail: str = ""
    ran: bool = True
    """False if the check was aborted by an error that an earlier check already reports."""


@dataclass(frozen=True)
class _Trial:
    """The method, data and folder that the checks share."""

    method: type[Method]
    dataset: Dataset
    teachers: tuple[NormalisedNetwork, ...]
    recipes: list[Recipe]
    tmp: Path

    @property
    def recipe(self) -> SetRecipe:
        return _set_of(self.recipes)

    def with_recipes(self, ipc: int = _IPC, set_seed: int = 0) -> _Trial:
        """The same trial of a set of another size or seed."""
        return replace(self, recipes=trial_recipes(self.recipe.method, self.dataset, ipc, set_seed=set_seed))

    def make(self, folder: str, **options: Any) -> Manifest | None:
        return trial_set(self.recipes, self.dataset, self.teachers, self.tmp, self.tmp / folder, **options)

    def whole(self, folder: str) -> Manifest:
        """The set in ``folder``, generated without interruption on first use."""
        manifest = self.make(folder)
        assert manifest is not None
        return manifest

    def blocks(self) -> list[Block]:
        return self.method().blocks(self.recipe, self.dataset.info)


def trial_recipes(name: str, dataset: Dataset, ipc: int, *, set_seed: int = 0, **settings: Any) -> list[Recipe]:
    """Recipes of a method's set with ``quick`` settings, after all its parents; every role is a trial teacher."""
    info = dataset.info
    data = Data(name=info.name, fingerprint=dataset.fingerprint)

    def teacher_of(role: str) -> TeacherRecipe:
        return TeacherRecipe(
            data=data,
            classes=info.classes,
            network="resnet18_w16",
            resolution=info.resolution,
            normalisation=info.normalisation,
            training=_TRIAL_TRAINING,
            precision="fp32",
            seed=int(digest(f"trial teacher {role}")[:6], 16),
        )

    def backbone_of(role: str) -> BackboneRecipe:
        trained = backbone_recipe(backbone_role(info, role), info, dataset.fingerprint)
        return trained.model_copy(update={"config": _TRIAL_SIZES.get(trained.family, trained.config)})

    values = {**METHODS.get(name).quick, **settings}
    planned = plan_set(name, info, data, ipc, values, teacher="teacher", teacher_of=teacher_of, backbone_of=backbone_of)
    return planned.recipes(set_seed)


def trial_recipe(name: str, dataset: Dataset, ipc: int, *, set_seed: int = 0, **settings: Any) -> SetRecipe:
    """The recipe of the set in :func:`trial_recipes`."""
    return _set_of(trial_recipes(name, dataset, ipc, set_seed=set_seed, **settings))


def _set_of(recipes: Sequence[Recipe]) -> SetRecipe:
    """The last recipe, which those before it are parents of."""
    recipe = recipes[-1]
    assert isinstance(recipe, SetRecipe)
    return recipe


def trial_set(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    teachers: Sequence[NormalisedNetwork],
    tmp: Path,
    folder: Path,
    *,
    device: str = "cpu",
    **options: Any,
) -> Manifest | None:
    """Generate the set of the last of ``recipes`` in ``folder``, and its parents once in ``tmp``.

    ``teachers`` are those of the last recipe, on ``device``; an initial set uses the first of them.
    """
    from rd3 import layer_statistics
    from rd3.teacher import dynamics as recordings

    before, recipe = recipes[:-1], _set_of(recipes)
    by_key = dict(zip(recipe.teachers, teachers, strict=True))
    backbones = {one.key: one for one in before if isinstance(one, BackboneRecipe)}
    statistics, dynamics, derived, init = [], [], [], None
    for parent in before:
        place = tmp / "parents" / parent.key
        if isinstance(parent, StatisticsRecipe) and parent.key in recipe.statistics:
            if not place.is_dir():
                layer_statistics.collect(parent, by_key[parent.teacher], dataset, place, device=device)
            statistics.append(layer_statistics.load(place, parent, device=device))
        elif isinstance(parent, TrainingDynamicsRecipe):
            if not place.is_dir():
                recordings.record(parent, dataset, place, device=device)
            dynamics.append(recordings.load(place, parent.key))
        elif isinstance(parent, DerivedRecipe):
            if not place.is_dir():
                place.mkdir(parents=True)
                derivation, settings = derivation_of(parent)
                backbone = trial_backbone(backbones[parent.backbone], dataset).to(device)
                derivation.derive(parent, settings, backbone, dataset, place, lambda fraction, note: None)
            derived.append(place)
        elif isinstance(parent, SetRecipe):
            initial = [by_key.get(key, teachers[0]) for key in parent.teachers]
            synthesize(parent, dataset, initial, place, device=device)
            init = SetOnDisk.open(place)
    return synthesize(
        recipe, dataset, teachers, folder, statistics=statistics, dynamics=dynamics, init=init, derived=derived,
        backbones=[trial_backbone(backbones[key], dataset).to(device) for key in recipe.backbones], device=device,
        **options,
    )  # fmt: skip


def trial_backbone(recipe: BackboneRecipe, dataset: Dataset) -> Backbone:
    """A small untrained diffusion model of the recipe's sizes, frozen; deterministic."""
    from rd3.diffusion.backbone import BACKBONES

    stream = generator(0, "trial backbone")
    backbone = BACKBONES.get(recipe.family).create(recipe.config, dataset.info, stream)
    with torch.no_grad():  # away from the zeros of its initialisation
        for network in backbone.networks().values():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.02)
    return backbone.frozen()


def trial_teacher(dataset: Dataset, number: int = 0) -> NormalisedNetwork:
    """A small untrained network with BatchNorm, frozen, in eval mode; deterministic."""
    info, stream = dataset.info, generator(0, "trial teacher", number)
    network = build_network("resnet18_w16", info.num_classes, info.resolution, info.normalisation, stream)
    return network.eval().requires_grad_(False)


class ToyDataset(Dataset):
    """Coloured noise in memory with a different hue per class, for tests; deterministic given its sizes."""

    def __init__(self, *, classes: int = 3, per_class: int = 8, side: int = 32, factor: int = 1):
        count = classes * per_class
        self.info = DatasetInfo(
            name="toy",
            source="drawn from a fixed random stream; not real images",
            class_ids=tuple(f"toy{label}" for label in range(classes)),
            class_names=tuple(f"toy class {label}" for label in range(classes)),
            resolution=side,
            test_resize=side,
            factor=factor,
            normalisation=Normalisation(mean=(0.5, 0.45, 0.4), std=(0.25, 0.2, 0.3)),
            train_count=count,
            test_count=count,
            train_per_class=per_class,
        )
        self._labels = np.arange(count, dtype=np.int64) % classes
        hues = torch.rand((classes, 3, 1, 1), generator=generator(0, "toy", "hues"))[torch.from_numpy(self._labels)]
        noise = torch.rand((count, 3, side // 4, side // 4), generator=generator(0, "toy", "noise"))
        noise = noise.repeat_interleave(4, 2).repeat_interleave(4, 3)
        self._images = (255 * (0.4 * hues + 0.6 * noise)).to(torch.uint8)

    @property
    def fingerprint(self) -> str:
        return digest([self.info.model_dump(mode="json"), "toy"])[:32]

    def labels(self, split: Split) -> np.ndarray:
        return self._labels

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        return self._images[list(indices)]

    def original(self, split: Split, index: int) -> torch.Tensor:
        return self._images[index]


def toy_teacher(dataset: Dataset, number: int = 0) -> NormalisedNetwork:
    """Two convolutions with BatchNorm and fixed random weights, frozen, in eval mode, for tests."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, dataset.info.num_classes),
    )
    stream = generator(0, "toy teacher", number)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            noise = torch.randn(tensor.shape, generator=stream)
            if tensor.ndim > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("weight", "running_var")):
                tensor.copy_((1 + 0.1 * noise).clamp(min=0.5))
            elif tensor.is_floating_point():
                tensor.copy_(0.1 * noise)
    return NormalisedNetwork(network, dataset.info.normalisation).eval().requires_grad_(False)


def check_method(name: str, *, tmp: Path) -> list[CheckResult]:
    """Run all checks on a registered method; ``tmp`` is an empty scratch folder."""
    dataset = open_dataset("digits", Roots(None, Path(tmp) / "home"))
    recipes = trial_recipes(name, dataset, _IPC)
    teachers = tuple(trial_teacher(dataset, number) for number in range(len(_set_of(recipes).teachers)))
    trial = _Trial(METHODS.get(name), dataset, teachers, recipes, Path(tmp))
    crashes: set[str] = set()
    return [_run(check, trial, crashes) for check in _CHECKS]


def _run(check: Callable[[_Trial], str | None], trial: _Trial, crashes: set[str]) -> CheckResult:
    """Run a check, which returns None or the problem; a repeated error, up to numbers, counts as not run."""
    title = (check.__doc__ or check.__name__).strip().rstrip(".")
    try:
        wrong = check(trial)
    except (Exception, SystemExit) as error:
        wrong = f"{type(error).__name__}: {error}"
        known = re.sub(r"\d+", "", wrong)
        if known in crashes:
            return CheckResult(title, False, "not run", ran=False)
        crashes.add(known)
    return CheckResult(title, wrong is None, wrong or "")


def _card(trial: _Trial) -> str | None:
    """The docstring is a method card: a summary in the first line, and a `Source:`."""
    text = inspect.cleandoc(trial.method.__doc__ or "")
    if not text.splitlines() or not text.splitlines()[0].strip().endswith((".", ":")):
        return "the class has no docstring whose first line is a sentence"
    return None if re.search(r"Source:\s*\S", text) else "the docstring has no 'Source:'"


def _strict(trial: _Trial) -> str | None:
    """Settings are frozen and reject unknown fields."""
    config = trial.method.Settings.model_config
    if config.get("extra") != "forbid" or not config.get("frozen"):
        return "derive the settings from rd3.methods.Settings"
    try:
        resolve_settings(trial.recipe.method, trial.dataset.info, _IPC, {"no_such_setting": 1})
    except RD3Error:
        return None
    return "an unknown setting was accepted"


def _resolved(trial: _Trial) -> str | None:
    """Resolved settings are plain JSON, and resolving them again changes nothing."""
    settings = trial.method.Settings.model_validate(trial.recipe.settings)
    again = trial.method().resolve_size(settings, trial.dataset.info, _IPC)
    return None if again == settings else f"resolve_size changed {settings!r} to {again!r} the second time"


def _reasons(trial: _Trial) -> str | None:
    """supports() accepts digits, and gives a reason whenever it rejects."""
    method, info = trial.method(), trial.dataset.info
    if not method.supports(info, _IPC).ok:
        return f"digits at IPC {_IPC} is rejected: {method.supports(info, _IPC).reason}"
    for ipc in (1, info.train_per_class, info.train_per_class + 1):
        support = method.supports(info, ipc)
        if not support.ok and not support.reason:
            return f"IPC {ipc} is rejected without a reason"
    return None


def _covered(trial: _Trial) -> str | None:
    """Blocks contain every (label, k) exactly once and are numbered from 0."""
    blocks = trial.blocks()
    members = [member for block in blocks for member in block.members]
    wanted = {(label, k) for label in range(trial.dataset.info.num_classes) for k in range(_IPC)}
    if [block.index for block in blocks] != list(range(len(blocks))):
        return "block indices are not 0, 1, 2, ..."
    if len(members) != len(set(members)):
        return "a (label, k) is in two blocks"
    return None if set(members) == wanted else f"{len(wanted ^ set(members))} (label, k) are missing or unexpected"


def _opened(trial: _Trial) -> str | None:
    """The generated set passes all checks on opening: shape, type, range, labels, digest."""
    manifest = trial.whole("whole")
    opened = SyntheticSet.open(trial.tmp / "whole", class_ids=trial.dataset.info.class_ids)
    return None if opened.manifest == manifest else "the manifest on disk differs from the returned one"


def _phases(trial: _Trial) -> str | None:
    """Time is measured in phases."""
    phases = trial.whole("whole").phases
    if not phases:
        return "nothing ran inside `with ctx.phase(...)`"
    return None if all(phase.wall_s >= 0 for phase in phases.values()) else f"negative times: {phases}"


def _repeatable(trial: _Trial) -> str | None:
    """The same recipe gives the same content, regardless of the global random state."""
    first = trial.whole("whole").content
    with torch.random.fork_rng(devices=[]):
        torch.randn(3)
        second = trial.whole("again").content
    return None if first == second else "two runs of one recipe differ: draw random numbers only from ctx.rng"


def _generators(trial: _Trial) -> str | None:
    """The global random generators are not used."""
    # Unlike the states that earlier checks have left, no method seeds its way back to these.
    name = "global generators"
    with scoped(generator(0, name)), scoped_globals(derive(0, name) % 2**32):
        before = _global_states()
        trial.make("generators", only_blocks=[0])
        same = _global_states() == before
    return None if same else "torch's, NumPy's or Python's global generator was drawn from or seeded"


def _global_states() -> tuple[object, ...]:
    """States of torch's, NumPy's and Python's global generators."""
    arrays = np.random.get_state(legacy=False)
    of_numpy = arrays["state"]["key"].tobytes(), arrays["state"]["pos"], arrays["has_gauss"], arrays["gauss"]
    return torch.get_rng_state().numpy().tobytes(), of_numpy, random.getstate()


def _seeded(trial: _Trial) -> str | None:
    """Different set seeds give different sets, or the same one if the method declares that it has no set seed."""
    if trial.method.seeded:
        other = trial.with_recipes(set_seed=1)
    else:  # its recipes have set seed 0, whatever is asked
        other = replace(trial, recipes=[*trial.recipes[:-1], trial.recipe.model_copy(update={"set_seed": 1})])
    same = other.whole("other seed").content == trial.whole("whole").content
    if trial.method.seeded:
        return "set seeds 0 and 1 give the same images" if same else None
    return None if same else "`seeded` is False, but set seeds 0 and 1 give different images"


def _independent(trial: _Trial) -> str | None:
    """Blocks generated separately, in reverse order, give the same content as together; so does a resumed run."""
    for block in reversed(trial.blocks()):
        last = trial.make("shares", only_blocks=[block.index])
    if last is None or last.content != trial.whole("whole").content:
        return "a block depends on which blocks were generated before it"
    trial.make("killed", only_blocks=[0])
    torn = trial.tmp / "killed" / "blocks" / f"{len(trial.blocks()) - 1:05d}.safetensors"
    torn.write_bytes(b"torn")
    resumed = trial.whole("killed")
    return None if resumed.content == last.content else "a resumed run differs from an uninterrupted one"


def _together(trial: _Trial) -> str | None:
    """Blocks generated together equal those generated alone up to rounding."""
    if trial.method.make_many is Method.make_many:
        return None
    trial.whole("whole")
    trial.make("together", blocks_at_once=len(trial.blocks()))
    alone, together = (to_unit(SyntheticSet.open(trial.tmp / folder).images) for folder in ("whole", "together"))
    # Rounding may flip the sign of a gradient close to zero, and with it the first steps of Adam.
    share = float(((alone - together).abs() > 1.5 / 255).float().mean())
    return None if share < _MAX_DIFFERENT else f"{100 * share:.1f} % of the pixels differ by more than one level of 255"


def _nested(trial: _Trial) -> str | None:
    """If the method declares that sets nest, the IPC-1 set consists of a larger one's first images, block by block."""
    method, info = trial.method(), trial.dataset.info
    if not method.nests(method.Settings.model_validate(trial.recipe.settings), info):
        return None
    smallest = trial.with_recipes(ipc=1)
    for small, large in zip(smallest.blocks(), trial.blocks(), strict=False):
        if (small.index, small.members) != (large.index, large.members[: len(small.members)]):
            return f"block {small.index} of IPC 1 is not the beginning of the larger set's block"
    smallest.make("nested")
    trial.whole("whole")
    own, first = (SyntheticSet.open(trial.tmp / folder).prefix(1)[0] for folder in ("nested", "whole"))
    return None if own.equal(first) else f"the images of IPC 1 are not the first ones of IPC {_IPC}"


def _cost(trial: _Trial) -> str | None:
    """cost() is finite, not negative, and does not decrease with IPC."""
    method, info = trial.method(), trial.dataset.info
    few, many = (method.cost(trial.with_recipes(ipc).recipe, info, lambda key: Cost(1e6, 1e6)) for ipc in (1, _IPC))
    if not all(0 <= value < float("inf") for cost in (few, many) for value in (cost.flops, cost.bytes)):
        return f"costs are {[few, many]}"
    return None if few.flops <= many.flops and few.bytes <= many.bytes else "IPC 2 costs less than IPC 1"


def _too_few(trial: _Trial) -> str | None:
    """A class with too few images in the split is rejected as unsupported, without a crash."""
    info = trial.dataset.info
    ipc = info.train_per_class + 1
    if trial.method().supports(info, ipc).ok:
        return None
    try:
        recipe = trial.with_recipes(ipc).recipe
        synthesize(recipe, trial.dataset, trial.teachers, trial.tmp / "too few", only_blocks=[0])
    except Unsupported:
        return None
    return f"IPC {ipc} was not rejected"


_CHECKS = (
    _card,
    _strict,
    _resolved,
    _reasons,
    _covered,
    _opened,
    _phases,
    _repeatable,
    _generators,
    _seeded,
    _independent,
    _together,
    _nested,
    _cost,
    _too_few,
)


def template(name: str) -> str:
    """Source of a new method called ``name``: a renamed copy of ``random``, which passes all checks."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise RD3Error(f"Invalid method name {name!r}.", "use lower-case letters, digits and underscores")
    from rd3.methods import random as shortest

    title = "".join(part.capitalize() for part in name.split("_"))
    card = f'''"""How {name} generates its images, in one sentence.

    A short description of the algorithm.  Settings belong in ``{title}Settings``; only time inside ``ctx.phase(...)``
    is measured.

    Source: authors, title, venue and year; repository and file.

    Deviations: differences from the publication, with reasons.
    """'''
    text = inspect.getsource(shortest)
    text = text.replace('"""Random: real images drawn uniformly."""', f'"""{title}: a method of RD3."""', 1)
    summary = (inspect.getdoc(shortest.Random) or "").splitlines()[0]
    text = text.replace(f'"""{summary}', "\0", 1)
    text = re.sub(r'\0.*?"""', lambda _match: card, text, count=1, flags=re.DOTALL)
    text = text.replace('@register_method("random"', f'@register_method("{name}"')
    return re.sub(r"\bRandom(Settings)?\b", lambda match: f"{title}{match[1] or ''}", text)
