"""The suite: what it needs, what it writes, and that reference paths do the same work as ours.  No time counts."""

from __future__ import annotations

import ast
import copy
import csv
import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

import benchmarks
from benchmarks import bench as bench_module
from benchmarks import post_evaluation, published, students
from benchmarks.__main__ import CASES, main, write_csv
from benchmarks.bench import Bench, Job, Row, Skipped, ratio
from benchmarks.recovery import PlainStatistics
from rd3.augment import cutmix_box
from rd3.augmentations.cutmix import CutMix
from rd3.augmentations.patch_shuffle import PatchShuffle
from rd3.evaluation.student import StudentTraining
from rd3.losses import LossTargets
from rd3.losses.kl import KLSettings, kl
from rd3.methods._recovery import BatchNormLoss
from rd3.testing import ToyDataset, trial_teacher

CPU = torch.device("cpu")
SUITE = Path(benchmarks.__file__).parent


@pytest.fixture
def small(monkeypatch):
    """Batches of four, two at once, and no peak to measure."""
    monkeypatch.setattr(bench_module, "matmul_peak", lambda device, dtype: 100.0)
    monkeypatch.setattr(post_evaluation, "BATCH", 4)
    monkeypatch.setitem(students.AHEAD, "cpu", 8)


def imported(path: Path) -> set[str]:
    """Modules of all import statements of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def needed_by(names: list[str]) -> set[str]:
    """Modules that files of the suite import, and those that they import from the suite in turn."""
    found: set[str] = set()
    for name in names:
        found |= imported(SUITE / f"{name}.py")
    own = [module.partition(".")[2] for module in found if module.startswith("benchmarks.")]
    new = [name for name in own if name not in names]
    return needed_by([*names, *new]) if new else found


def test_no_case_imports_the_platform():
    packages = {module.partition(".")[0] for module in needed_by(["__main__", *CASES])}
    assert not packages & {"pipelines", "tracking", "ray", "mlflow", "optuna", "boto3", "pandas", "sklearn"}
    assert {"benchmarks", "rd3", "torch", "torchvision"} <= packages


def test_every_case_is_a_module_with_run():
    for name in CASES:
        assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_quick_on_a_gpu_leaves_the_cell_out():
    assert "cell" not in [name for name, case in CASES.items() if case.runs("cuda", quick=True)]
    assert [name for name, case in CASES.items() if case.runs("cpu", quick=False)] == list(CASES)


def test_a_case_end_to_end(tmp_path, small, capsys):
    words = ["post_evaluation", "--network", "resnet18_w16", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    with open(tmp_path / "post_evaluation.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {"with the extra forward", "without the extra forward"} <= {row["variant"].split(", ")[-1] for row in rows}
    wanted = {"processor", "gpu", "device", "dtype", "layout", "batch", "tf32_products", "load_average", "date"}
    assert wanted | {"threads", "torch", "rd3", "python"} <= set(rows[0])
    for row in rows:
        assert float(row["ratio"]) == pytest.approx(float(row["reference_s"]) / float(row["ours_s"]))
        assert float(row["images_per_s"]) == pytest.approx(4 / float(row["ours_s"]))
        assert 0 < float(row["share_of_peak"]) == pytest.approx(float(row["gflop_per_s"]) / 100)
    assert "images/s" in capsys.readouterr().out


def test_a_case_that_fails_or_is_skipped_stops_no_other(tmp_path, small, capsys, monkeypatch):
    def broken(bench: Bench) -> list[Row]:
        raise ValueError("broken")

    def skipped(bench: Bench) -> list[Row]:
        raise Skipped("no data")

    monkeypatch.setattr("benchmarks.layout.run", broken)
    monkeypatch.setattr("benchmarks.cell.run", skipped)
    monkeypatch.setattr("benchmarks.recovery.run", lambda bench: [])
    assert main(["layout", "cell", "recovery", "--device", "cpu", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "layout: ValueError: broken" in said and "cell: skipped, no data" in said
    assert [path.name for path in tmp_path.iterdir()] == ["recovery.csv"]


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["post_evaluatoin"])
    assert "there is no case 'post_evaluatoin'; there are post_evaluation, " in capsys.readouterr().err


def test_a_device_that_is_not_here_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--device", "tpu"])
    assert ended.value.code == 2 and "Device 'tpu' is not available" in capsys.readouterr().err


def test_the_cell_is_skipped_without_data(tmp_path, monkeypatch):
    monkeypatch.delenv("RD3_DATA", raising=False)
    with pytest.raises(Skipped, match="CIFAR-10 cannot be opened"):
        importlib.import_module("benchmarks.cell").run(Bench(CPU, out=tmp_path))


def test_columns_are_named_once(tmp_path):
    write_csv(tmp_path / "rows.csv", [], {"processor": "", "gpu": ""})
    names = (tmp_path / "rows.csv").read_text().strip().split(",")
    assert len(names) == len(set(names)) and names[0] == "case" and names[-1] == "gpu"


def test_paths_take_turns_after_a_warm_up(monkeypatch):
    order: list[str] = []
    paths = {name: lambda name=name: order.append(name) or 2 for name in "abc"}
    spent = Bench(CPU, rounds=2).compare(paths)
    assert "".join(order) == "abc" + "abc" + "bca"
    assert [len(each) for each in spent.values()] == [2, 2, 2]
    monkeypatch.setattr(bench_module, "QUICK_LIMIT_S", 0.0)
    assert len(Bench(CPU, rounds=5, quick=True).compare(paths)["a"]) == 1


def test_a_ratio_is_the_median_of_ratios_and_aims_are_judged(small):
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    row = Bench(CPU).row(Job("c", "v", "step", 4), [1.0, 3.0], [4.0, 9.0], dtype="fp32", layout="NCHW", aim=3.5)
    assert row.ratio == 3.5 and row.verdict == "reaches 3.5" and row.share_of_peak is None


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.71, 1.0])
def test_the_published_cutmix_is_ours_to_the_pixel(lam):
    images, partner, centre = torch.rand(6, 3, 32, 32), torch.randperm(6), (5, 30)
    box = torch.tensor(cutmix_box(lam, centre, 32)).expand(6, 4)
    ours = CutMix(CutMix.Settings()).apply(images, partner, torch.zeros(6), box)
    assert torch.equal(published.cutmix(images.clone(), lam, centre, partner), ours)


def test_the_published_shuffle_has_the_outcomes_of_ours():
    image = torch.arange(16.0).view(1, 4, 4)
    shuffle, stream = PatchShuffle(PatchShuffle.Settings(grid=2)), torch.Generator().manual_seed(0)
    theirs = {tuple(published.ShufflePatches(2)(image).flatten().tolist()) for _ in range(100)}
    ours = {
        tuple(one.flatten().tolist())
        for one in shuffle.apply(image.expand(100, 1, 4, 4), *shuffle.draw(100, 4, stream))
    }
    assert theirs == ours and len(ours) == 4


def test_at_32_pixels_the_published_transform_flips_and_normalises_alone():
    info = ToyDataset().info
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    transform = published.train_transform(32, 1, info.normalisation)
    straight = functional.normalize(image / 255, info.normalisation.mean, info.normalisation.std)
    seen = [transform(functional.to_pil_image(image)) for _ in range(20)]
    assert all(torch.equal(view, straight) or torch.equal(view, straight.flip(2)) for view in seen)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 2


def test_a_published_step_has_the_loss_of_ours(monkeypatch):
    monkeypatch.setattr(published, "cutmix", lambda images, *draws: images)
    dataset = ToyDataset(classes=3, per_class=2)
    images = dataset.images("train", range(6))
    images = torch.maximum(images, images.flip(3))  # the same when mirrored
    teacher, student = trial_teacher(dataset), trial_teacher(dataset, 1).train()
    with torch.no_grad():
        targets = LossTargets(teacher(images / 255), torch.zeros(6, dtype=torch.long), None, 1.0)
        wanted = float(kl(copy.deepcopy(student)(images / 255), targets, KLSettings()))
    bare = student.network.requires_grad_(True)
    before = copy.deepcopy(bare.state_dict())
    loop = published.PublishedLoop(
        images,
        torch.tensor(dataset.labels("train")),
        teacher.network,
        bare,
        dataset.info,
        batch=6,
        device=CPU,
        extra_forward=False,
    )
    assert loop.steps(1) == 1
    assert loop.loss == pytest.approx(wanted, rel=1e-3)
    changed = [name for name, value in bare.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == len(list(bare.parameters()))


def test_validation_counts_right_answers():
    dataset, network = ToyDataset(classes=3, per_class=4), trial_teacher(ToyDataset(classes=3))
    images, labels = dataset.images("train", range(12)), torch.tensor(dataset.labels("train"))
    right = int((network(images / 255).argmax(1) == labels).sum())
    assert published.validate(network.network, images, labels, dataset.info.normalisation, CPU) == right


def test_students_of_equal_views_pay_the_teacher_once(small):
    subject = students.Subject(32, "resnet18_w16", batch=4, images=20)
    recipes = [subject.recipe(), subject.recipe(loss={"kl": {"temperature": 4.0}}), subject.recipe(student_seed=1)]
    taught = {}
    for name, some in {"one": recipes[:1], "shared": recipes[:2], "other views": recipes[::2]}.items():
        pack = students.Students(subject, some, CPU)
        assert pack.work() == 2
        taught[name] = pack.taught
    assert taught == {"one": 8, "shared": 8, "other views": 16}


def test_steps_of_other_views_are_queued_before_any_is_waited_for(small, monkeypatch):
    """As in a pack: on a GPU a student that is waited for at once would keep the next one from running beside it."""
    subject, done = students.Subject(32, "resnet18_w16", batch=4, images=20), []
    pack = students.Students(subject, [subject.recipe(student_seed=seed) for seed in range(2)], CPU)
    for name in ("step", "join"):
        monkeypatch.setattr(StudentTraining, name, lambda one, *_batch, name=name: done.append((name, id(one))))
    pack.work()
    steps = [place for place, (name, _student) in enumerate(done) if name == "step"]
    first = done[steps[0]][1]
    assert len(steps) == 4 and ("join", first) not in done[steps[0] : steps[1]]


def test_the_plain_statistics_are_those_of_the_method():
    network = trial_teacher(ToyDataset()).network
    pixels = torch.randn(4, 3, 32, 32)
    plain = PlainStatistics(network)
    with torch.no_grad(), BatchNormLoss(network, 10.0) as ours:
        network(pixels)
        assert float(ours.value()) == pytest.approx(float(plain.value()), rel=1e-4)


def test_toys_fill_a_set_in_class_order():
    subject = students.Subject(32, "resnet18_w16", images=50)
    assert np.array_equal(subject.labels.numpy(), list(itertools.islice(itertools.cycle(range(10)), 50)))
