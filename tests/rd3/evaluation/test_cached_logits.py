"""Cached teacher logits: the same bits as without, from files that are whole, within a budget, and gone in the end."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from rd3.errors import BadValue
from rd3.evaluation import cached_logits, teaching
from rd3.evaluation.budget import image_steps, logits_bytes, steps
from rd3.evaluation.cached_logits import CachedLogits, LogitsStream
from rd3.evaluation.logits_folder import PART, SUFFIX, LogitsFolder
from rd3.evaluation.packing import Views
from rd3.evaluation.posteval import Evaluation, train_pack
from rd3.evaluation.sharing import LogitsCache, Sharing, disk_budget
from rd3.evaluation.views import views
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe
from rd3.testing import ToyDataset, toy_teacher

CPU = torch.device("cpu")
PLENTY = 10**9
DATASET = ToyDataset(classes=4, per_class=6, side=32)
IMAGES = DATASET.images("train", list(range(24)))
LABELS = torch.tensor(DATASET.labels("train")[:24])
TEACHERS = [toy_teacher(DATASET, number) for number in range(2)]


def recipe(teachers: int = 1, **fields) -> EvaluationRecipe:
    overrides = {"epochs": 3, "batch_size": 5} | fields
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=24, overrides=overrides)
    return EvaluationRecipe(
        set="s" * 64, teachers=tuple(str(number) * 64 for number in range(teachers)), protocol=protocol,
        student="convnet_w32", student_seed=0, data=Data(name="toy", fingerprint="f"), classes=DATASET.info.classes,
        resolution=32, normalisation=DATASET.info.normalisation,
    )  # fmt: skip


def kept(home: Path, budget: int = PLENTY, *, wanted: bool = True) -> CachedLogits:
    return CachedLogits(LogitsFolder(home, budget), "content", wanted)


def evaluation(one: EvaluationRecipe, cached_logits: CachedLogits | None = None) -> Evaluation:
    return Evaluation(one, IMAGES, LABELS, TEACHERS[: len(one.teachers)], cached_logits=cached_logits)


def trained(*evaluations: Evaluation) -> list:
    """What does not depend on the clock."""
    found = train_pack(evaluations, DATASET, device=CPU)
    return [(one.curve, one.per_class_correct, one.final_loss, one.label_bytes) for one in found]


def complete(home: Path) -> list[Path]:
    return sorted((home / "logits").glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "fields",
    [
        {}, {"teachers": 2, "hybrid": "balanced"}, {"teacher_mode": "batch"}, {"soft_labels": "stored"},
        {"soft_labels": "stored", "label_epochs": 2},
        {"soft_labels": "stored", "label_epochs": 2, "label_reuse": "epochs"},
    ],
)  # fmt: skip
def test_the_second_evaluation_reads_all_logits_and_is_equal_to_the_bit(tmp_path, passes, precision, fields):
    first, second = recipe(precision=precision, **fields), recipe(precision=precision, zeta=2.0, **fields)
    writer, reader = kept(tmp_path), kept(tmp_path)
    without = [*trained(evaluation(first)), *trained(evaluation(second))]
    assert trained(evaluation(first, writer)) == without[:1] and not writer.read
    before = len(passes)
    assert trained(evaluation(second, reader)) == without[1:] and reader.read
    assert len(passes) == before, "no teacher was asked"
    assert without[0] != without[1]


def test_what_is_read_has_the_type_and_the_bits_that_teachers_compute(tmp_path):
    """The plain path is one call of the teachers for each chunk."""
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = recipe(2, precision=precision)
        trained(evaluation(one, kept(tmp_path / precision)))
        copies = [teaching.frozen(teacher, "eval", precision, CPU) for teacher in TEACHERS]
        ahead = teaching.AHEAD["cpu"] // 5
        stream = LogitsStream(kept(tmp_path / precision), one, 24, CPU, precision, ahead)
        for chunk in views(IMAGES, LABELS, one.protocol, 0, ahead):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                plain = [copy(chunk.pixels) for copy in copies]
            read = stream.logits(len(chunk.pixels), lambda: pytest.fail("computed"))
            assert all(each.dtype == dtype for each in read)
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(plain, read, strict=True))
        stream.close()


@pytest.mark.parametrize("images", [20, 21, 24])
def test_the_size_is_known_beforehand(tmp_path, images):
    one = recipe(2, precision="bf16")
    rows = [len(chunk.pixels) for chunk in views(IMAGES[:images], LABELS[:images], one.protocol, 0)]
    assert (sum(rows), len(rows)) == (image_steps(one.protocol, images), steps(one.protocol, images))
    assert logits_bytes(one.protocol, images, 4, 2, "bf16") == sum(rows) * 4 * 2 * 2
    train_pack(
        [Evaluation(one, IMAGES[:images], LABELS[:images], TEACHERS, cached_logits=kept(tmp_path))], DATASET, device=CPU
    )
    [path] = complete(tmp_path)
    assert 0 < path.stat().st_size - logits_bytes(one.protocol, images, 4, 2, "bf16") < 500


def test_a_pack_writes_and_reads_as_a_whole(tmp_path, passes):
    pack = [recipe(zeta=zeta) for zeta in (1.0, 1.5)]
    others = [recipe(zeta=zeta) for zeta in (2.0, 2.5)]
    without = trained(*map(evaluation, others))
    trained(*(evaluation(one, kept(tmp_path)) for one in pack))
    assert len(complete(tmp_path)) == 1
    before, mine = len(passes), [kept(tmp_path) for _one in others]
    assert trained(*map(evaluation, others, mine)) == without
    assert len(passes) == before and all(one.read for one in mine)


@pytest.mark.parametrize("place", [3, 40, -1, -400, "short"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, place, monkeypatch):
    """In the header, at the end, in the middle, and too short; then it is written anew."""
    monkeypatch.setitem(teaching.AHEAD, "cpu", 5)
    one = recipe()
    without = trained(evaluation(one, kept(tmp_path)))
    [path] = complete(tmp_path)
    raw = bytearray(path.read_bytes())
    if place == "short":
        path.write_bytes(raw[:-10])
    else:
        raw[place] ^= 1
        path.write_bytes(raw)
    with pytest.warns(UserWarning, match="are computed again: "):
        assert trained(evaluation(one, kept(tmp_path, wanted=False))) == without
    assert not complete(tmp_path)
    assert trained(evaluation(one, kept(tmp_path))) == without
    mine = kept(tmp_path)
    assert trained(evaluation(one, mine)) == without and mine.read


class Stop(BaseException):
    """Ends a training from a callback."""


def test_a_writer_that_is_interrupted_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(teaching.AHEAD, "cpu", 5)

    def stop(_fraction: float, _note: str) -> None:
        assert list((tmp_path / "logits").glob(f"*{PART}"))
        raise Stop

    one, writer = recipe(), kept(tmp_path)
    with pytest.raises(Stop):
        train_pack([Evaluation(one, IMAGES, LABELS, TEACHERS[:1], stop, cached_logits=writer)], DATASET, device=CPU)
    assert not complete(tmp_path) and not list((tmp_path / "logits").glob(f"*{PART}"))


def _write_and_die(home: Path) -> None:
    teaching.AHEAD["cpu"] = 5
    torch.set_num_threads(1)
    dies = Evaluation(recipe(), IMAGES, LABELS, TEACHERS[:1], lambda *_: os._exit(9), cached_logits=kept(home))
    train_pack([dies], DATASET, device=CPU)


def test_a_writer_that_was_killed_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(teaching.AHEAD, "cpu", 5)
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not complete(tmp_path) and len(list((tmp_path / "logits").glob(f"*{PART}"))) == 1
    one, mine = recipe(), kept(tmp_path)
    without = trained(evaluation(one))
    assert trained(evaluation(one, mine)) == without and not mine.read
    assert len(complete(tmp_path)) == 1, "written anew"


def _train_beside(home: Path, ready, results) -> None:
    torch.set_num_threads(1)
    mine = kept(home)
    ready.wait()
    results.put((trained(evaluation(recipe(), mine)), mine.read))


@pytest.fixture
def new_process_floats():
    """Floats as in a new process: tests that run recipes leave denormals flushed, which decides bits."""
    torch.set_flush_denormal(False)


def test_two_processes_at_once_do_not_disturb_each_other(new_process_floats, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_train_beside, args=(tmp_path, ready, results)) for _number in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _process in processes]
    for process in processes:
        process.join()
    without = trained(evaluation(recipe()))
    assert [result for result, _read in found] == [without] * 2
    mine = kept(tmp_path)
    assert trained(evaluation(recipe(), mine)) == without
    assert len(complete(tmp_path)) == 1 and not list((tmp_path / "logits").glob(f"*{PART}"))


def test_only_one_writes_a_file(tmp_path):
    folder = LogitsFolder(tmp_path, 100)
    stream = folder.begin("a-b", 60)
    assert folder.begin("a-b", 60) is None, "it is being written"
    assert folder.begin("c-d", 60) is None, "the rest of the budget is too small"
    stream.write(b"x" * 60)
    folder.complete("a-b", stream)
    assert folder.begin("a-b", 60) is None, "it is there"
    with folder.open("a-b") as reader:
        assert reader.read() == b"x" * 60


def test_the_least_recently_used_go_first_and_readers_can_go_on(tmp_path):
    folder = LogitsFolder(tmp_path, 100)
    for place, name in enumerate(("a-1", "b-1", "c-1")):
        stream = folder.begin(name, 30)
        stream.write(name.encode() * 10)
        folder.complete(name, stream)
        os.utime(tmp_path / "logits" / f"{name}{SUFFIX}", (place, place))
    reader = folder.open("a-1")
    assert reader is not None
    folder.abandon("d-1", folder.begin("d-1", 40))
    assert [path.stem for path in complete(tmp_path)] == ["a-1", "c-1"]
    with reader:
        folder.discard(["a" * 64])
        assert [path.stem for path in complete(tmp_path)] == ["a-1", "c-1"], "other views"
        folder.discard(["a"])
        assert [path.stem for path in complete(tmp_path)] == ["c-1"]
        assert reader.read() == b"a-1" * 10


def test_a_budget_that_is_too_small_keeps_nothing_and_changes_nothing(tmp_path):
    one = recipe()
    assert trained(evaluation(one, kept(tmp_path, budget=100))) == trained(evaluation(one))
    assert not complete(tmp_path)


def test_logits_that_nobody_waits_for_are_not_written(tmp_path):
    trained(evaluation(recipe(), kept(tmp_path, wanted=False)))
    assert not (tmp_path / "logits").exists()


def test_a_home_that_cannot_be_written_is_only_a_warning(tmp_path):
    (tmp_path / "logits").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be "):
        assert trained(evaluation(recipe(), kept(tmp_path))) == trained(evaluation(recipe()))


@pytest.mark.parametrize("fields", [{"labels": "hard"}, {"soft_labels": "once"}])
def test_labels_that_cost_little_are_not_kept(fields):
    one = recipe(**fields)
    assert Sharing([one], PLENTY).keep([one.key], lambda _key: True) == {}


def test_what_decides_bits_is_part_of_the_name(tmp_path, monkeypatch):
    """Other weights of the same recipe, another processor, another size of chunks."""
    one = recipe()
    trained(evaluation(one, kept(tmp_path)))
    other = kept(tmp_path)
    other.content = "other weights"
    trained(evaluation(one, other))
    monkeypatch.setitem(teaching.AHEAD, "cpu", 10)
    trained(evaluation(one, kept(tmp_path)))
    monkeypatch.setattr(cached_logits, "bits_of", lambda device: {"device": "another"})
    trained(evaluation(one, kept(tmp_path)))
    assert not other.read and len(complete(tmp_path)) == 4


def test_evaluations_of_equal_views_share_as_long_as_one_waits():
    first, second, third = (recipe(zeta=zeta) for zeta in (1.0, 2.0, 3.0))
    alone = recipe(batch_size=6)
    sharing = Sharing([first, second, third, alone], PLENTY)
    waiting = {second.key, third.key, alone.key}
    assert sharing.keep([first.key], waiting.__contains__) == {first.key: LogitsCache(PLENTY, True)}
    assert sharing.keep([first.key, second.key], {third.key}.__contains__)[second.key].wanted
    assert not sharing.keep([first.key, second.key, third.key], waiting.__contains__)[first.key].wanted
    assert not sharing.keep([alone.key], waiting.__contains__)[alone.key].wanted
    assert sharing.unneeded({third.key}.__contains__) == [Views.of(alone).key]


@pytest.mark.parametrize(
    ("text", "count"), [("500MB", 500 * 10**6), ("2.5 GB", 25 * 10**8), ("1GiB", 2**30), ("12b", 12), ("70", 70)]
)
def test_budgets(text, count):
    assert disk_budget(text) == count


@pytest.mark.parametrize("text", ["", "0GB", "-1GB", "GB", "1 PB", "1e9", "9" * 400])
def test_a_budget_that_is_no_size(text):
    with pytest.raises(BadValue, match="is not a size above 0"):
        disk_budget(text)
