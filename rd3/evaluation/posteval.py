"""Post-evaluation: train one student on one synthetic set under one protocol, then test it once.

Views of the set are drawn from two random streams, one for the order and one for the augmentation; teachers label
exactly these pixels; the student is trained on them; after the last epoch it is tested on the whole test split.
Sources: the RD3 paper, Tables 8 and 9; the order of operations follows LINs-lab/RDED ``validation/main.py``.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.device import repeatable_kernels, reset_peak, resolve_precision, torch_defaults, usable_device
from rd3.errors import BadValue, ClassOrderError, ends_the_process
from rd3.evaluation.own_teacher import check_class_count, identity, own_teacher
from rd3.evaluation.packing import Views
from rd3.evaluation.result import EvalResult
from rd3.evaluation.student import Evaluation, Progress, StudentTraining
from rd3.evaluation.teaching import LabelledViews, OwnLabels, frozen
from rd3.evaluation.views import Batch
from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.notes import Note, warn_of_doubts
from rd3.inputs.pixels import stated_space
from rd3.known_constants import Constants
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe
from rd3.tensor_bytes import sha256_of
from rd3.values import digest

if TYPE_CHECKING:
    from rd3.datasets import Dataset, DatasetInfo


def train_pack(
    evaluations: Sequence[Evaluation], dataset: Dataset, *, device: torch.device | str
) -> list[EvalResult | Exception]:
    """Train several students side by side, each exactly as it would be trained alone, and test each once.

    Evaluations with equal :class:`Views` share pixels and teacher logits, which may be kept on disk.  All random
    numbers derive from the student seed, so that a run on one CPU thread is bitwise reproducible.  Returns each result,
    or the exception that ended that evaluation while the others continue: :class:`Diverged` for a loss that is not
    finite (after its epoch or, on CUDA, some later), one of its ``tested`` callback, or one of saving its student.  Out
    of memory and device errors end them all.  A student's times, and the peak memory, are the pack's.

    Deviations: the references augment per sample in loader workers; here whole batches are augmented on the device,
    with the same distributions.  With ``sgd`` the protocol's ``beta1`` is the momentum.  A last batch of one image is
    dropped, since batch normalisation needs two; the references keep it.
    """
    device = usable_device(device)
    for one in evaluations:
        _check_input(one, dataset)
    reset_peak(device)
    groups: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        groups.setdefault(Views.of(one.recipe).key, []).append(one)
    copies: dict[Any, nn.Module] = {}
    outcomes: dict[int, EvalResult | Exception] = {}
    with repeatable_kernels(), contextlib.ExitStack() as opened:
        waiting = [_Group(group, dataset, device, copies, outcomes) for group in groups.values()]
        for group in waiting:
            opened.callback(group.close)
        while waiting:
            waiting = [group for group in waiting if group.advance()]
    return [outcomes[id(one)] for one in evaluations]


class _Group:
    """Students that share views: set, teachers and how these run, augmentation and precision are equal."""

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        dataset: Dataset,
        device: torch.device,
        copies: dict[Any, nn.Module],
        outcomes: dict[int, EvalResult | Exception],
    ):
        """``copies`` are frozen teachers, shared by all groups; ``outcomes``, by ``id`` of evaluation, is filled in."""
        first = evaluations[0]
        precision = resolve_precision(device, first.recipe.protocol.precision)
        images, labels = first.images.to(device), first.labels.to(device)
        mode = first.recipe.protocol.teacher_mode

        def frozen_copy(teacher: nn.Module) -> nn.Module:
            """Made when it is first used, which cached logits may spare."""
            key = id(teacher), mode, precision
            if key not in copies:
                copies[key] = frozen(teacher, mode, precision, device)
                with torch.no_grad():
                    check_class_count(copies[key](to_unit(images[:2])), dataset)
            return copies[key]

        own = first.soft_labels if first.recipe.protocol.own_labels else None
        per_image = None if own is None else OwnLabels(own, device)
        self._views = LabelledViews(
            images, labels, first.teachers, first.recipe, precision, per_image, first.cached_logits, frozen_copy
        )
        if self._views.cached_logits is None or not self._views.cached_logits.reading:
            for teacher in first.teachers:
                frozen_copy(teacher)  # before the clocks of the students start
        self._batches = iter(self._views)
        self._students = {id(one): StudentTraining(one, dataset, device, precision) for one in evaluations}
        self._queued: list[Batch] = []
        self._last = False
        self._evaluations, self._outcomes = evaluations, outcomes

    def close(self) -> None:
        """Close cached logits, and record in each evaluation whether some were read."""
        self._views.close()
        used = self._evaluations[0].cached_logits
        for one in self._evaluations:
            if one.cached_logits is not None and used is not None:
                one.cached_logits.read = used.read

    def advance(self) -> bool:
        """Finish the last step of every student and queue the next; False when all have ended.

        On CUDA the steps of all groups run concurrently, as none waits for the others before its next step.
        """
        for student in self._students.values():
            student.join()
        self._queued = []  # may be freed now
        if self._last:
            self._for_each(lambda _number, student: student.end_epoch())
        labelled = next(self._batches, None) if self._students else None
        if labelled is None:
            self._for_each(lambda number, student: self._outcomes.update({number: student.result()}))
            return False
        self._last = labelled.batch.last
        self._queued = [labelled.with_labels_of(student.recipe.protocol) for student in self._students.values()]
        for student, own in zip(self._students.values(), self._queued, strict=True):
            student.step(own)
        return True

    def _for_each(self, act: Callable[[int, StudentTraining], None]) -> None:
        """Call ``act`` with every student and its ``id``; a student with an error leaves, with it as the outcome."""
        for number, student in list(self._students.items()):
            try:
                act(number, student)
            except Exception as error:
                if ends_the_process(error):
                    raise
                self._outcomes[number] = error
                del self._students[number]


@torch_defaults()
def evaluate(
    images: Any,
    labels: Any,
    dataset: Dataset,
    teacher: nn.Module | None = None,
    *,
    teacher_network: str = "resnet18",
    normalisation: Constants | None = None,
    allow_chance: bool = False,
    student: str = "resnet18",
    protocol: str = "rd3",
    student_seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
    normalised: Constants | None = None,
    clip: bool = False,
    soft_labels: Any = None,
    soft_label_kind: str | None = None,
    **fields: Any,
) -> EvalResult:
    """Evaluate your own images: train a student on them under a protocol and test it on the dataset's test split.

    ``images``: (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1] at the dataset's resolution, as a tensor or a
    NumPy array; a list of such images or of PIL's; or a column of ``datasets``.  ``labels``: (N,) integers in the order
    of ``dataset.info.class_ids``, class names, one-hot rows, or a column, whose own class order is obeyed.
    ``normalised``: constants that were applied to the images and are undone: a :class:`Normalisation`, ``"dataset"``, a
    name such as ``"half"`` for [-1, 1], ``"MEAN/STD"`` or a pair (mean, std); ``clip``: clip what is then outside
    [0, 1].  What was found in them is the first note that ``progress`` receives; doubts are Python warnings.

    ``teacher`` gives soft labels; without one the student is trained on the set's own ``soft_labels``, or on the hard
    labels.  ``soft_labels``: (N, C) floats in the order of the images, with columns in the order of the classes (a
    name, such as ``"once"``, is the protocol field, which says when the teacher labels); ``soft_label_kind``:
    ``"logits"`` or ``"probabilities"``, where the values do not show it.  ``teacher_network`` is the teacher's
    architecture; protocols may depend on whether the student has it too.  ``fields`` override the preset (``lr=0.01``).

    A full protocol takes minutes to hours: ``progress`` is called at least once per epoch with the finished fraction
    (0-1) and a note with the epoch and the remaining time; by default nothing is shown.

    The teacher is a network that returns logits (B, C).  ``normalisation`` are the constants that its input was
    normalised with in its training: a name such as ``"imagenet"``, ``"MEAN/STD"``, a pair (mean, std), or ``"none"``
    for a network that takes pixels in [0, 1] or normalises them itself, as RD3's teachers do.  It is tested once, on at
    most a thousand validation images: a network that is not better than chance is refused unless ``allow_chance``, and
    so are classes that are permuted and, if no normalisation is given, one that needs another.

    Example::

        def progress(fraction, note):
            print(f"{100 * fraction:.0f} %  {note}")

        data = open_dataset("digits", roots)
        result = evaluate(images, labels, data, teacher, student="resnet18", progress=progress)
        print(result.top1_pct)
    """

    def say(note: Note) -> None:  # before training begins; doubts also as Python's warnings
        progress(0.0, note.text)
        warn_of_doubts(note)

    _check_names(student=student, teacher_network=teacher_network, protocol=protocol)
    if isinstance(student_seed, bool) or not isinstance(student_seed, numbers.Integral) or student_seed < 0:
        raise BadValue(f"student_seed is {student_seed!r}, expected an integer of at least 0.", "call it once per seed")
    if not hasattr(dataset, "info"):
        raise BadValue(
            f"dataset is of type {type(dataset).__name__}, expected a dataset.",
            "call evaluate(images, labels, dataset, teacher) with rd3.open_dataset(...) third",
        )
    info = dataset.info
    space = stated_space(normalised, clip, info.normalisation)
    device = usable_device(device)
    given = None if isinstance(soft_labels, str) else soft_labels
    if given is not None and teacher is not None:
        raise BadValue("Both a teacher and soft_labels are given.", "leave out one: both label the images")
    if teacher is None and normalisation is not None:
        fix = "leave it out, or state constants of the images with normalised="
        raise BadValue(f"normalisation is {normalisation!r}, but there is no teacher.", fix)
    regime = soft_labels if given is None else "own"
    if teacher is None and regime in ("online", "once", "stored"):
        message = f"soft_labels {regime!r} are those of a teacher, and none was given."
        raise BadValue(message, "pass a teacher, or soft labels of the images")
    images, labels, own = check_images_and_labels(
        images, labels, info, space, soft_labels=given, soft_label_kind=soft_label_kind, say=say
    )
    for note in _class_notes(labels, info):
        say(note)
    implied = {"labels": "hard"} if teacher is None and regime != "own" else {}
    stated = {} if regime is None else {"soft_labels": regime}
    resolved = resolve_protocol(
        protocol,
        factor=info.factor,
        same_network=student == teacher_network,
        set_size=len(labels),
        student=student,
        dataset=info.name,
        classes=info.num_classes,
        ipc=max(1, round(len(labels) / info.num_classes)),
        overrides=implied | stated | fields,
    )
    teachers = []
    if teacher is not None and resolved.labels == "hard":
        say(Note("the teacher is not used: the protocol's labels are hard", doubtful=True))
    elif teacher is not None:
        teachers = [
            own_teacher(
                teacher,
                dataset,
                normalisation,
                allow_chance=allow_chance,
                device=device,
                progress=progress,
                batch_statistics=resolved.teacher_mode == "batch",
            )
        ]
    # Nothing is stored under this recipe: digests stand for the keys of the set and the teacher.
    recipe = EvaluationRecipe(
        set=_digest(images, labels) if own is None else digest([_digest(images, labels), own.digest()]),
        teachers=tuple(_digest(*identity(each, normalisation)) for each in teachers),
        protocol=resolved,
        student=student,
        student_seed=int(student_seed),
        data=Data(name=info.name, fingerprint=dataset.fingerprint, split="unknown"),
        classes=info.classes,
        resolution=info.resolution,
        normalisation=info.normalisation,
    )
    evaluation = Evaluation(recipe, images, labels, teachers, progress, soft_labels=own)
    [outcome] = train_pack([evaluation], dataset, device=device)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _class_notes(labels: torch.Tensor, info: DatasetInfo) -> Iterator[Note]:
    """Notes on classes without images, and on classes with more images than others."""
    counts = torch.bincount(labels, minlength=info.num_classes)
    missing = [info.class_ids[label] for label in (counts == 0).nonzero()[:, 0].tolist()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        yield Note(f"{len(missing)} of {info.num_classes} classes have no images: {shown}", doubtful=True)
    elif int(counts.min()) < int(counts.max()):
        yield Note(f"classes have {int(counts.min())} to {int(counts.max())} images")


def _check_names(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, str):
            fix = "register it (docs/tutorials) and give its name"
            raise BadValue(f"{name} is of type {type(value).__name__}, expected a name.", fix)


def _digest(*tensors: torch.Tensor) -> str:
    """sha256 over shapes, types and values."""
    return sha256_of(part for one in tensors for part in (f"{tuple(one.shape)}{one.dtype}", one))


def _check_input(evaluation: Evaluation, dataset: Dataset) -> None:
    recipe, images, labels = evaluation.recipe, evaluation.images, evaluation.labels
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
            f"resize the images to {side} pixels and give one label per image",
        )
    if images.dtype not in (torch.uint8, torch.float32) or labels.dtype != torch.int64:
        raise BadValue(
            f"The set has {images.dtype} images and {labels.dtype} labels, expected uint8 or float32, and int64.",
            "convert them to these types",
        )
    if len(images) < 2 or protocol.batch_size < 2:
        raise BadValue(
            f"The set has {len(images)} images in batches of {protocol.batch_size}; batch normalisation needs two.",
            "give at least two images and a batch_size of at least two",
        )
    if images.dtype == torch.float32 and not bool(((images >= 0) & (images <= 1)).all()):
        raise BadValue(
            f"The images range from {images.min():.3g} to {images.max():.3g}, expected pixels in [0, 1].",
            "undo the normalisation, as networks apply their own",
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= info.num_classes:
        raise BadValue(
            f"The labels range from {lowest} to {highest}, {info.name} has 0 to {info.num_classes - 1}.",
            "map the labels to the order of the dataset's class list",
        )
    wrong = protocol.contradictions()
    if wrong:
        raise BadValue(f"The protocol is inconsistent: {'; '.join(wrong)}.", "plan the evaluation again")
    protocol.require_fit(info.name, side, info.num_classes)
    own = evaluation.soft_labels
    protocol.require_labels_of(None if own is None else own.kind)
    if own is not None and tuple(own.values.shape) != (len(images), info.num_classes):
        raise BadValue(
            f"The set has soft labels {tuple(own.values.shape)}, expected {(len(images), info.num_classes)}.",
            "give one row for each image, with one column for each class",
        )
    if protocol.taught and not evaluation.teachers:
        raise BadValue("Soft labels need a teacher, but none was given.", "pass a teacher or use labels 'hard'")
    if protocol.own_labels and evaluation.teachers:
        raise BadValue("The labels are the set's own, but a teacher was given.", "leave it out")
