"""Where the weights lie in a checkpoint: wrappers, prefixes, things beside them; and that nothing is executed."""

from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import gzip
import lzma
import os
import pickle
import shutil
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rd3.errors import BadValue, DataCorrupt
from rd3.recipe import Normalisation
from rd3.teacher.state_dicts import WeightsFile


class Small(nn.Module):
    """A network with the parts that prefixes get mixed up with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.downsample, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)


GOOD = Small().state_dict()
OTHER = {name: value + 1 for name, value in GOOD.items()}


def below(prefix: str, state: dict[str, Any] = GOOD) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


class Config(dict):
    """A dictionary of a class that the reader does not know."""

    def freeze(self) -> Config:
        """Gets an attribute, as configuration classes have them."""
        self.frozen = True
        return self


class Settings:
    def __init__(self) -> None:
        self.lr = 0.1


UNDERSTOOD = {
    "plain": GOOD,
    **{
        prefix: below(prefix)
        for prefix in (
            *("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone."),
            *("network.", "module.student.", "1.", "encoder.model."),
        )
    },
    **{
        wrapper: {wrapper: GOOD, "epoch": 9}
        for wrapper in ("state_dict", "model", "net", "model_state_dict", "model_ema", "params", "weights", "ema")
    },
    "both": {"checkpoint": {"state_dict": below("module.model.")}},
    "list": [GOOD],
    "beside": {**GOOD, "epoch": 9, "best_acc1": torch.tensor(93.1), "optimizer": {"state": {0: {"exp_avg": GOOD}}}},
    "namespace": {"model": GOOD, "args": argparse.Namespace(lr=0.1)},
    "numpy": {"state_dict": GOOD, "best": np.float64(93.1), "curve": np.zeros(3)},
    "objects": {"sd": GOOD, "when": datetime.date(2020, 1, 1), "at": Path("x"), "o": Settings(), "c": Config(a=1)},
    "dictionary of a class": {"sd": Config(GOOD), "d": collections.defaultdict(list, a=[1])},
    "dictionary with attributes": {"state_dict": GOOD, "args": Config(lr=0.1).freeze()},
    "averaged": {"model_ema": {"n_averaged": torch.tensor(3), **below("module.")}},
    "lightning": {"state_dict": {**below("model."), "criterion.weight": torch.rand(2)}},
    "normaliser": {"0.mean": torch.rand(1, 3, 1, 1), "0.std": torch.rand(1, 3, 1, 1), **below("1.")},
    "normaliser at the top": {"mean": torch.rand(3), "std": torch.rand(3), **GOOD},
    "parameters": {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in GOOD.items()},
    "pytorch-cifar": {
        "net": below("module.", {k.replace("fc", "linear").replace("downsample", "shortcut"): GOOD[k] for k in GOOD})
    },
    "the same twice": {"model": GOOD, "best": dict(GOOD)},
    "no counters": {name: value for name, value in GOOD.items() if "batches" not in name},
}


def found(path: Path, entry: str | None = None):
    return WeightsFile.open(path).weights(GOOD, entry)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", UNDERSTOOD)
def test_the_weights_are_found(case, legacy, tmp_path):
    torch.save(UNDERSTOOD[case], tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    tensors = found(tmp_path / "c.pth").tensors
    expected = UNDERSTOOD["no counters"] if case == "no counters" else GOOD
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        ({"model": GOOD, "model_ema": below("module.", OTHER)}, {"model": GOOD, "model_ema": OTHER}),
        ({**below("student."), **below("teacher.", OTHER)}, {"student": GOOD, "teacher": OTHER}),
        ({**GOOD, **below("ema.", OTHER)}, {".": GOOD, "ema": OTHER}),
    ],
)
def test_several_networks_are_chosen_among_by_name(content, entries, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(BadValue, match="2 networks") as caught:
        found(tmp_path / "c.pth")
    assert caught.value.fix.endswith(f"--entry {next(iter(entries))}")
    for entry, expected in entries.items():
        tensors = found(tmp_path / "c.pth", entry).tensors
        assert tensors.keys() == GOOD.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in GOOD)
    with pytest.raises(BadValue, match="no weights of this network under 'x'"):
        found(tmp_path / "c.pth", "x")


def test_constants_in_the_file_are_noted(tmp_path):
    constants = {"norm.mean": torch.tensor([0.5, 0.25, 0.125]), "norm.std": torch.tensor([0.5, 0.5, 0.25])}
    torch.save({**constants, **below("net.")}, tmp_path / "c.pth")
    assert found(tmp_path / "c.pth").normalisation == Normalisation(mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.25))


def test_layers_of_another_network_are_kept_for_the_comparison(tmp_path):
    torch.save({**GOOD, "bn1.se.weight": torch.rand(2, 2)}, tmp_path / "more.pth")
    assert set(found(tmp_path / "more.pth").tensors) - set(GOOD) == {"bn1.se.weight"}
    torch.save({name: value for name, value in below("net.").items() if "fc" not in name}, tmp_path / "less.pth")
    assert set(GOOD) - set(found(tmp_path / "less.pth").tensors) == {"fc.weight", "fc.bias"}


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    """Neither builtins nor system calls, nor the code of a module that is installed here."""
    module = types.ModuleType("installed")
    exec(f"def touch(*names):\n    open({str(tmp_path / 'touched')!r}, 'w').close()", module.__dict__)
    module.touch.__module__ = "installed"
    monkeypatch.setitem(sys.modules, "installed", module)
    touch = f"open({str(tmp_path / 'touched')!r}, 'w').close()"
    for call in (Calls(exec, touch), Calls(eval, touch), Calls(os.system, f"touch {tmp_path / 'touched'}")):
        torch.save({"model": GOOD, "o": call}, tmp_path / "c.pth")
        with pytest.raises(DataCorrupt, match="when unpickled, which no tensors need"):
            found(tmp_path / "c.pth")
    torch.save({"model": GOOD, "o": Calls(module.touch, "a")}, tmp_path / "c.pth")
    assert torch.equal(found(tmp_path / "c.pth").tensors["fc.weight"], GOOD["fc.weight"])
    assert not (tmp_path / "touched").exists()
    torch.load(tmp_path / "c.pth", weights_only=False)  # what was refused above would have run
    assert (tmp_path / "touched").exists()


def test_files_without_a_state_dict_are_said_without_torchs_advice(tmp_path):
    torch.save(GOOD, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "legacy.pth").read_bytes()
    contents = {
        "a pickled .*Small object": Small(),
        "holds no state dict, but .*Small' and 'int' objects": {"net": Small(), "epoch": 3},
        "holds no state dict, it is empty": {},
        "holds no state dict, but 'Tensor' objects": {"total_ops": torch.ones(1)},
        "holds one int": 3,
    }
    for message, content in contents.items():
        torch.save(content, tmp_path / "c.pth")
        _refused(tmp_path / "c.pth", message)
    for bad in (*(raw[:cut] for cut in (12, 300, len(raw) // 2, len(raw) - 3)), pickle.dumps({"a": 1}), b"\x80" * 900):
        (tmp_path / "c.pth").write_bytes(bad)
        _refused(tmp_path / "c.pth", "damaged|holds")


def _refused(path: Path, message: str) -> None:
    with pytest.raises(DataCorrupt, match=message) as caught:
        found(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(("mode", "kind"), [("w", "tar"), ("w:gz", "tar"), ("zip", "ZIP")])
def test_archives_of_other_files_are_named_and_their_fix_works(mode, kind, tmp_path):
    torch.save(GOOD, tmp_path / "best.pth")
    packed = tmp_path / "model.pth.tar"
    if mode == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(tmp_path / "best.pth", "run/best.pth")
    else:
        with tarfile.open(packed, mode) as archive:
            archive.add(tmp_path / "best.pth", "run/best.pth")
    with pytest.raises(DataCorrupt, match=rf"is a {kind} archive of run/best\.pth, not a state dict") as caught:
        found(packed)
    assert caught.value.fix == "unpack it and import a file in it"
    shutil.unpack_archive(packed, tmp_path, {"w": "tar", "w:gz": "gztar"}.get(mode, "zip"))
    assert torch.equal(found(tmp_path / "run/best.pth").tensors["fc.weight"], GOOD["fc.weight"])


def test_damaged_archives_are_one_sentence_too(tmp_path):
    with tarfile.open(tmp_path / "cut.tar.xz", "w:xz") as archive:
        (tmp_path / "noise").write_bytes(os.urandom(100_000))
        archive.add(tmp_path / "noise", "noise")
    content = bytearray((tmp_path / "cut.tar.xz").read_bytes())
    content[40:60] = bytes(20)
    (tmp_path / "cut.tar.xz").write_bytes(content)
    _refused(tmp_path / "cut.tar.xz", "is compressed with xz, not a state dict")
    end = b"PK\5\6" + bytes(8) + struct.pack("<II", 46, 4) + bytes(2)  # the end of a ZIP file, after no directory
    (tmp_path / "odd.pth").write_bytes(b"something" * 20 + end)
    _refused(tmp_path / "odd.pth", "is damaged|cannot be read as a state dict")


def test_a_file_by_torch_is_read_under_the_name_of_an_archive(tmp_path):
    torch.save({"state_dict": GOOD}, tmp_path / "model_best.pth.tar")
    assert found(tmp_path / "model_best.pth.tar").tensors.keys() == GOOD.keys()


@pytest.mark.parametrize(("opener", "kind"), [(gzip.open, "gzip"), (bz2.open, "bzip2"), (lzma.open, "xz")])
def test_compressed_files_are_named_and_their_fix_works(opener, kind, tmp_path):
    torch.save(GOOD, tmp_path / "best.pth")
    with opener(tmp_path / "packed.pth", "wb") as packed:
        packed.write((tmp_path / "best.pth").read_bytes())
    with pytest.raises(DataCorrupt, match=f"is compressed with {kind}, not a state dict") as caught:
        found(tmp_path / "packed.pth")
    assert caught.value.fix == "unpack it first"
    with opener(tmp_path / "packed.pth") as packed:
        (tmp_path / "again.pth").write_bytes(packed.read())
    assert found(tmp_path / "again.pth").tensors.keys() == GOOD.keys()


def test_files_of_other_programs_are_named(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    _refused(tmp_path / "x.npy", "is a NumPy array, not a state dict")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)))
    _refused(tmp_path / "x.h5", r"is an HDF5 file \(Keras\), not a state dict")
