"""The paper's numbers: against the lines of the CSV as text, and against the tables as printed."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from tracking.report.paper import doubts, incomparable, names, paper_order, paper_value

TEXT = files("tracking.report").joinpath("data", "paper_results.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("cell", "printed", "table"),
    [
        # Tables 1, 7 and 15 as printed in the paper.
        (("sre2l", "cifar10", 10, "resnet18", "resnet18", "soft"), (29.7, 0.8), "1"),
        (("rded", "cifar10", 1, "resnet18", "resnet18", "soft"), (22.5, 0.7), "1"),
        (("random", "cifar10", 1, "resnet18", "resnet18", "soft"), (25.5, 0.4), "7"),
        (("random", "cifar10", 10, "resnet18", "resnet18", "soft"), (42.3, 0.3), "7"),
        (("random", "cifar10", 10, "resnet18", None, "hard"), (23.5, 0.3), "7"),
    ],
)
def test_values_as_printed(cell, printed, table):
    value = paper_value(*cell)
    assert (value.mean, value.std) == printed
    assert value.table == table


@pytest.mark.parametrize(
    ("line", "cell"),
    [
        ("1,ImageNet-1K,50,EDC,ResNet-18,label=soft", ("edc", "imagenet1k", 50, "resnet18", "resnet18", "soft")),
        ("3,ImageNet-1K,50,RDED,Swin-V2-T,label=soft", ("rded", "imagenet1k", 50, "swin_v2_t", "resnet18", "soft")),
        ("14,ImageNet-1K,10,D4M,ViT-B-16,label=soft", ("d4m", "imagenet1k", 10, "vit_b_16", "resnet18", "soft")),
        ("11,ImageNet-1K,100,CDA,ResNet-50,label=soft", ("cda", "imagenet1k", 100, "resnet50", "resnet18", "soft")),
        ("15,TinyImageNet,100,DWA,ResNet-18,label=hard", ("dwa", "tinyimagenet", 100, "resnet18", "resnet18", "hard")),
    ],
)
def test_values_are_those_of_the_line(line, cell):
    (row,) = [text for text in TEXT.splitlines() if text.startswith(line)]
    mean, std = re.search(r",top1,([\d.]+),([\d.]+),", row).groups()
    value = paper_value(*cell)
    assert (value.mean, value.std, value.table) == (float(mean), float(std), line.split(",")[0])


@pytest.mark.parametrize(
    "cell",
    [
        ("rded", "imagenette-224", 10, "resnet18", "resnet18", "soft"),  # a subset is never the whole
        ("rded", "tiny-imagenet-64", 10, "resnet18", "resnet18", "soft"),
        ("rded", "digits", 10, "resnet18", "resnet18", "soft"),
        ("rded", "cifar10", 10, "resnet18_w16", "resnet18", "soft"),
        ("rded", "cifar10", 10, "resnet18", "resnet18_w16", "soft"),
        ("rded", "cifar10", 10, "resnet18", "convnet", "hard"),
        ("rded", "cifar10", 5, "resnet18", "resnet18", "soft"),
        ("somebodys", "cifar10", 10, "resnet18", "resnet18", "soft"),
        ("minimax", "cifar10", 10, "resnet18", "resnet18", "soft"),  # not printed
        ("rded", "cifar10", 10, "resnet50", "resnet18", "soft"),
    ],
)
def test_no_value_is_made_up(cell):
    assert paper_value(*cell) is None


def test_hard_labels_on_a_set_without_a_teacher_have_the_papers_value():
    assert paper_value("d4m", "imagenet1k", 10, "resnet18", None, "hard").mean == 5.6
    assert paper_value("random", "imagenet1k", 10, "resnet18", None, "soft") is None


def test_every_printed_cell_of_tables_1_and_7_can_be_had():
    ours = {theirs: our for our, theirs in names()["methods"].items()}
    data = {theirs: our for our, theirs in names()["datasets"].items()}
    seen = 0
    for line in TEXT.splitlines():
        table, dataset, ipc, method, _model, config, *_ = line.split(",")
        if table in ("1", "7"):
            labels = "hard" if config.startswith("label=hard") else "soft"
            assert paper_value(ours[method], data[dataset], int(ipc), "resnet18", "resnet18", labels) is not None
            seen += 1
    assert seen == 184 + 48


def test_doubtful_cells_say_so():
    assert "duplicate" in paper_value("cda", "imagenet1k", 1, "resnet18", "resnet18", "soft").remark
    assert "49.6" in paper_value("cda", "imagenet1k", 10, "resnet101", "resnet18", "soft").remark
    assert paper_value("cda", "cifar10", 1, "resnet18", "resnet18", "soft").remark == ""


def test_doubts_name_tables_methods_and_datasets_that_are_printed():
    printed = {tuple(line.split(",")[:4]) for line in TEXT.splitlines()}
    for doubt in doubts():
        if "dataset" in doubt:
            for ipc in doubt["ipc"]:
                for method in doubt["method"]:
                    assert (doubt["table"], doubt["dataset"], str(ipc), method) in printed


def test_what_sets_a_cell_apart():
    assert incomparable("rded", "rd3", {}, "soft", {}) == []
    assert incomparable("rded", "rd3", {"precision": "fp32", "labels": "hard", "loss": "ce"}, "hard", {}) == []
    assert incomparable("rded", "rd3", {"temperature": 4.0}, "soft", {}) == ["temperature=4.0"]
    assert incomparable("rded", "rd3-reduced", {}, "soft", {}) == ["protocol rd3-reduced"]
    assert incomparable("rded", "rd3", {"loss": "mse_gt"}, "soft", {}) == ["loss=mse_gt"]
    # in a configuration that the grid names, the protocol's fields are its own, and the method's settings are not
    named = {"loss": "mse_gt", "rded.factor": 2}
    assert incomparable("rded", "rd3", named, "soft", {"6": "loss=MSE-GT"}) == ["rded.factor=2"]
    assert incomparable("rded", "rd3", {}, "soft", {"2": "rectified=no"}) == [
        "each original paper has a protocol of its own"
    ]
    assert incomparable("rded", "rd3", {}, "soft", {"2": "rectified=yes"}) == []


def test_order_is_the_papers_then_by_name():
    given = ["zeta", "rded", "alpha", "sre2l", "random"]
    assert sorted(given, key=lambda name: paper_order("methods", name)) == ["random", "sre2l", "rded", "alpha", "zeta"]
