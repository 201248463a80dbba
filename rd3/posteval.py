"""Post-evaluation: train one student on one synthetic set under one protocol, then test it once.

The story: views of the set (order, augmentation) are made in a fixed order from two random streams; teachers label the
very same pixels; the student learns; after the last epoch it meets the whole test split.
Sources: RD3, Tables 8 and 9; the order of operations follows LINs-lab/RDED ``validation/main.py``.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.device import lay_out, ran_precision, repeatable_kernels, usable_device
from rd3.errors import BadValue, ClassOrderError, Diverged
from rd3.eval_result import EvalResult
from rd3.hybrid import together
from rd3.losses import LOSSES
from rd3.memory import peak_mib, reset_peak
from rd3.models import build_network
from rd3.protocol import EvalProtocol, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe
from rd3.schedule import zeta_cosine
from rd3.seeding import generator, own_draws
from rd3.views import Batch, views

if TYPE_CHECKING:
    from rd3.datasets import Dataset, Split

AHEAD = 256
"""Images that teachers label at once, from as many batches as fit: frozen and in eval mode, they answer per image."""
TEST_BATCH = 250

Progress = Callable[[float, str], None]
"""Called with the done fraction (0-1) and a note for people, at least once an epoch."""
Tested = Callable[[int, float], None]
"""Called with an epoch (1-based) and the top-1 accuracy in per cent after it."""


def train_and_test(
    recipe: EvaluationRecipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    teachers: Sequence[nn.Module],
    dataset: Dataset,
    *,
    device: torch.device | str,
    progress: Progress = lambda fraction, note: None,
    tested: Tested | None = None,
) -> EvalResult:
    """Train the recipe's student on a synthetic set and test it on the recipe's test split.

    ``images``: (N, 3, H, W) uint8 or float32 in [0, 1]; ``labels``: (N,) int64; ``teachers`` take pixels in [0, 1] and
    are never changed.  Every random number comes from the student seed, so a run on one CPU thread repeats bit by bit.
    Raises :class:`Diverged` at the end of the epoch in which a loss is not finite.  ``tested`` is called after each
    test at the protocol's ``test_epochs``; what it raises ends the training, which is how a sweep stops a poor trial.

    Deviations: the references augment per sample in loader workers; here a batch at a time on the device, by the same
    laws.  With ``sgd`` the protocol's ``beta1`` is the momentum.  A last batch of one image is left out of its epoch,
    since batch normalisation needs two; the references keep it.
    """
    wall, process = time.perf_counter(), time.process_time()
    device, protocol, info = usable_device(device), recipe.protocol, dataset.info
    precision = ran_precision(device, protocol.precision)
    _check(recipe, images, labels, teachers, dataset)
    reset_peak(device)

    images, labels = images.to(device), labels.to(device)
    frozen = [_frozen(teacher, protocol, precision, device) for teacher in teachers]
    for teacher in frozen:
        _check_classes(teacher, images[:2], dataset)
    stream = generator(recipe.student_seed, "init")
    student = build_network(recipe.student, info.num_classes, recipe.resolution, recipe.normalisation, stream)
    student = student.to(device)
    lay_out(student, precision)
    optimizer = _optimizer(student, protocol)
    loss_of = LOSSES.get(protocol.loss.name)
    loss_settings = loss_of.Settings.model_validate(protocol.loss.settings)
    test_epochs = set(protocol.test_epochs) | {protocol.epochs}
    watch = _Watch(protocol.epochs, len(images), len(test_epochs) * len(dataset.labels(recipe.tested_on)), progress)

    total = len(dataset.labels(recipe.tested_on))
    curve: list[dict[str, float]] = []
    tests: dict[int, torch.Tensor] = {}
    with _repeatable(recipe.student_seed, device):
        labelled = _labelled(images, labels, frozen, recipe, precision)
        for epoch, batches in itertools.groupby(labelled, key=lambda batch: batch.epoch):
            lr = protocol.lr * zeta_cosine(epoch - 1, protocol.epochs, protocol.zeta, protocol.warmup_epochs)
            for group in optimizer.param_groups:
                group["lr"] = lr
            student.train()
            losses, counts, right = [], [], torch.zeros((), dtype=torch.int64, device=device)
            for batch in batches:
                with _autocast(device, precision):
                    if protocol.extra_student_forward:
                        with torch.no_grad():
                            student(batch.images)
                    logits = student(batch.images)
                loss = loss_of(logits, batch.targets, loss_settings)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                counts.append(len(logits))
                right += (logits.detach().argmax(dim=1) == batch.targets.labels).sum()
            # The one place of an epoch that waits for the device.
            row = _epoch_row(epoch, torch.stack(losses).tolist(), counts, int(right), lr, curve)
            curve.append(row)
            watch.trained(epoch)
            if epoch in test_epochs:
                tests[epoch] = _right_per_class(student, dataset, recipe.tested_on, device, precision, watch)
                if tested is not None and epoch in protocol.test_epochs:
                    tested(epoch, 100 * int(tests[epoch].sum()) / total)

    correct = int(tests[protocol.epochs].sum())
    return EvalResult(
        tested_on=recipe.tested_on,
        ran_precision=precision,
        correct=correct,
        tested=total,
        top1_pct=100 * correct / total,
        per_class_correct=tests[protocol.epochs].tolist(),
        final_loss=curve[-1]["loss"],
        epochs_run=len(curve),
        curve=curve,
        diagnostics={epoch: 100 * int(tests[epoch].sum()) / total for epoch in sorted(protocol.test_epochs)},
        wall_s=time.perf_counter() - wall,
        process_s=time.process_time() - process,
        peak_mib=peak_mib(device),
    )


def evaluate(
    images: torch.Tensor,
    labels: torch.Tensor,
    dataset: Dataset,
    teacher: nn.Module | None = None,
    *,
    teacher_network: str = "resnet18",
    student: str = "resnet18",
    protocol: str = "rd3",
    student_seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
    **fields: Any,
) -> EvalResult:
    """Score your own tensors: train a student on them under a protocol and test it on the dataset's test split.

    ``images``: (N, 3, H, W) uint8 or float32 in [0, 1] at the dataset's resolution; ``labels``: (N,) integers in the
    order of ``dataset.info.class_ids``.  ``teacher`` gives soft labels; without one the student learns the hard labels.
    ``teacher_network`` is its architecture: the protocol resolves by whether the student has the same.  ``fields`` are
    protocol fields that win over the preset, such as ``epochs=40``.

    A whole protocol takes minutes to hours: ``progress`` is called at least once an epoch with the done fraction (0-1)
    and a note with epoch, loss and the time that is left; without it nothing is said.

    Example::

        def progress(fraction, note):
            print(f"{100 * fraction:.0f} %  {note}")

        data = open_dataset("digits", roots)
        result = evaluate(images, labels, data, teacher, student="resnet18", progress=progress)
        print(result.top1_pct)
    """
    labels, info = torch.as_tensor(labels).long(), dataset.info
    resolved = resolve_protocol(
        protocol,
        factor=info.factor,
        same_network=student == teacher_network,
        set_size=len(labels),
        overrides=fields if teacher is not None else {"labels": "hard"} | fields,
    )
    recipe = EvaluationRecipe(
        set=_digest(images, labels),
        teachers=(_digest(*teacher.state_dict().values()),) if teacher is not None else (),
        protocol=resolved,
        student=student,
        student_seed=student_seed,
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split="unknown"),
        classes=info.classes,
        resolution=info.resolution,
        normalisation=info.normalisation,
    )
    teachers = [] if teacher is None else [teacher]
    return train_and_test(recipe, images, labels, teachers, dataset, device=device, progress=progress)


def _digest(*tensors: torch.Tensor) -> str:
    """sha256 over shapes and values."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _check(
    recipe: EvaluationRecipe,
    images: torch.Tensor,
    labels: torch.Tensor,
    teachers: Sequence[nn.Module],
    dataset: Dataset,
) -> None:
    """Everything that can be wrong with the input, before any work."""
    info, protocol, side = dataset.info, recipe.protocol, recipe.resolution
    if recipe.classes != info.classes:
        raise ClassOrderError(
            f"The evaluation was planned for class list {recipe.classes[:12]}, {info.name} has {info.classes[:12]}.",
            "plan it again with this dataset",
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side) or tuple(labels.shape) != (len(images),):
        raise BadValue(
            f"The set has images {tuple(images.shape)} and labels {tuple(labels.shape)}, "
            f"expected (N, 3, {side}, {side}) and (N,).",
            f"resize the images to {side} pixels and give one label each",
        )
    if images.dtype not in (torch.uint8, torch.float32) or labels.dtype != torch.int64:
        raise BadValue(
            f"The set has {images.dtype} images and {labels.dtype} labels, expected uint8 or float32, and int64.",
            "convert them",
        )
    if len(images) < 2 or protocol.batch_size < 2:
        raise BadValue(
            f"The set has {len(images)} images in batches of {protocol.batch_size}; batch normalisation needs two.",
            "give at least two images and a batch_size of at least two",
        )
    if images.dtype == torch.float32 and not bool(((images >= 0) & (images <= 1)).all()):
        raise BadValue(
            f"The images run from {images.min():.3g} to {images.max():.3g}, expected pixels in [0, 1].",
            "undo the normalisation: networks apply their own",
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= info.num_classes:
        raise BadValue(
            f"The labels run from {lowest} to {highest}, {info.name} has 0 to {info.num_classes - 1}.",
            "map the labels to the order of the dataset's class list",
        )
    wrong = protocol.contradictions()
    if wrong:
        raise BadValue(f"The protocol contradicts itself: {'; '.join(wrong)}.", "plan the evaluation again")
    if protocol.labels == "soft" and not teachers:
        raise BadValue("Soft labels need a teacher, none was given.", "pass a teacher, or labels 'hard'")


def _check_classes(teacher: nn.Module, images: torch.Tensor, dataset: Dataset) -> None:
    """A teacher of another dataset gives itself away by its number of classes."""
    with torch.no_grad():
        classes = teacher(to_unit(images)).shape[1]
    if classes != dataset.info.num_classes:
        raise BadValue(
            f"The teacher answers with {classes} classes, {dataset.info.name} has {dataset.info.num_classes}.",
            "take a teacher of this dataset",
        )


def _frozen(teacher: nn.Module, protocol: EvalProtocol, precision: str, device: torch.device) -> nn.Module:
    """A copy of a teacher that answers and never changes; ``batch`` mode drops the running statistics of the copy."""
    own = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    lay_out(own, precision)
    if protocol.teacher_mode == "batch":
        for module in own.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Without running statistics a batch norm uses the batch's even in eval mode; dropout stays off.
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False
    return own


def _optimizer(student: nn.Module, protocol: EvalProtocol) -> torch.optim.Optimizer:
    """Weight decay on tensors named ``weight`` with more than one dimension, none on the others (LINs-lab/RDED)."""
    decayed, plain = [], []
    for name, parameter in student.named_parameters():
        (decayed if "weight" in name and parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": protocol.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=protocol.lr, momentum=protocol.beta1)
    return torch.optim.AdamW(groups, lr=protocol.lr, betas=(protocol.beta1, protocol.beta2), fused=True)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast at that precision: weights, statistics and losses stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Process-wide state for one run, put back afterwards.

    Dropout and stochastic depth draw from torch's own generators, which get a stream of this seed.
    """
    with own_draws(device, seed, "dropout"), repeatable_kernels():
        yield


def _labelled(
    images: torch.Tensor,
    labels: torch.Tensor,
    teachers: Sequence[nn.Module],
    recipe: EvaluationRecipe,
    precision: str,
) -> Iterator[Batch]:
    """All batches of all epochs, in order, with what the teachers say together of the same pixels.

    Views depend on the seed alone, not on the student, so teachers may run several batches ahead.
    """
    protocol = recipe.protocol
    ahead = max(1, AHEAD // protocol.batch_size) if teachers and protocol.teacher_mode == "eval" else 1
    for batches in views(images, labels, protocol, recipe.student_seed, ahead):
        if teachers:
            pixels = torch.cat([batch.images for batch in batches])
            with torch.no_grad(), _autocast(pixels.device, precision):
                answers = [teacher(pixels).float() for teacher in teachers]
            sizes = [len(batch.images) for batch in batches]
            for batch, *own in zip(batches, *(each.split(sizes) for each in answers), strict=True):
                batch.targets = replace(batch.targets, teacher_logits=together(own, protocol))
        yield from batches


def _epoch_row(
    epoch: int, losses: list[float], counts: list[int], right: int, lr: float, curve: list[dict[str, float]]
) -> dict[str, float]:
    """The curve's row of one epoch; raises :class:`Diverged` if a loss is not finite."""
    broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if broken is not None:
        before = losses[broken - 1] if broken else curve[-1]["loss"] if curve else None
        finite = f"{before:.6g}" if before is not None else "none"
        raise Diverged(
            f"The loss is {losses[broken]} in epoch {epoch}, step {broken + 1} of {len(losses)}; "
            f"the last finite one was {finite}.",
            "lower lr, or check the set and the teacher",
        )
    seen = sum(counts)
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / seen
    return {"epoch": epoch, "loss": mean, "lr": lr, "train_top1_pct": 100 * right / seen}


def _right_per_class(
    student: nn.Module, dataset: Dataset, split: Split, device: torch.device, precision: str, watch: _Watch
) -> torch.Tensor:
    """(C,) int64 on the CPU: right predictions per class over the whole split, each image once, in eval mode."""
    truth = torch.tensor(dataset.labels(split))
    right = torch.zeros(dataset.info.num_classes, dtype=torch.int64)
    student.eval()
    for places in torch.arange(len(truth)).split(TEST_BATCH):
        pixels = to_unit(dataset.images(split, places.tolist()).to(device))
        with torch.no_grad(), _autocast(device, precision):
            guess = student(pixels).argmax(dim=1).cpu()
        own = truth[places]
        right += torch.bincount(own[guess == own], minlength=len(right))
        watch.tested(len(places))
    return right


class _Watch:
    """Turns work done into a fraction and a note with the time left.

    Work is counted in forward passes: a training image costs four (student forward and backward, teacher), a test
    image one.
    """

    def __init__(self, epochs: int, images: int, test_images: int, progress: Progress):
        self.epochs, self.images, self.progress = epochs, images, progress
        self.work = 4 * epochs * images + test_images
        self.done = self.epoch = 0
        self.start = time.perf_counter()

    def trained(self, epoch: int) -> None:
        self.epoch = epoch
        self._advance(4 * self.images, "training")

    def tested(self, images: int) -> None:
        self._advance(images, "testing")

    def _advance(self, work: int, doing: str) -> None:
        self.done += work
        fraction = self.done / self.work
        left_s = (time.perf_counter() - self.start) * (1 - fraction) / fraction
        self.progress(fraction, f"{doing}, epoch {self.epoch}/{self.epochs}, {left_s:.0f} s left")
