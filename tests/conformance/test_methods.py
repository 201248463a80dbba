"""Every registered method, and the template, pass the suite for authors."""

from __future__ import annotations

import importlib.util
import random
import re
import sys

import numpy as np
import pytest
import torch

from rd3.errors import RD3Error
from rd3.methods import METHODS, Method
from rd3.seeding import scoped
from rd3.testing import check_method, template

USES_GLOBAL = "torch's, NumPy's or Python's global generator was drawn from or seeded"


@pytest.mark.parametrize("name", METHODS.names())
def test_method_conforms(name, tmp_path):
    results = check_method(name, tmp=tmp_path)
    assert len(results) >= 12
    assert not [result for result in results if not result.ok]


def _load(text, path, monkeypatch):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)


@pytest.fixture
def registry(monkeypatch):
    METHODS.names()
    monkeypatch.setattr(METHODS, "_things", dict(METHODS._things))
    return METHODS


def test_the_template_is_a_method_that_conforms(registry, tmp_path, monkeypatch):
    text = template("my_method")
    assert "Random" not in text and '"random"' not in text
    _load(text, tmp_path / "my_method.py", monkeypatch)
    assert issubclass(METHODS.get("my_method"), Method)
    assert not [result for result in check_method("my_method", tmp=tmp_path / "trial") if not result.ok]


def test_a_bad_method_is_told_what_is_wrong(registry, tmp_path, monkeypatch):
    text = template("careless")
    text = text.replace('generator=ctx.rng("select", label)', "")
    text = text.replace('with ctx.phase("select"):', "if True:").replace("Source:", "From:")
    _load(text, tmp_path / "careless.py", monkeypatch)
    wrong = {result.detail for result in check_method("careless", tmp=tmp_path / "trial") if not result.ok}
    assert "nothing ran inside `with ctx.phase(...)`" in wrong
    assert "the docstring has no 'Source:'" in wrong
    assert "two runs of one recipe differ: draw random numbers only from ctx.rng" in wrong
    assert USES_GLOBAL in wrong


@pytest.mark.parametrize(
    "line", ["np.random.seed(0); np.random.permutation(9)", "torch.manual_seed(0); torch.rand(3)", "random.seed(0)"]
)
def test_a_method_that_seeds_a_global_generator_with_a_constant_is_told_so(registry, tmp_path, monkeypatch, line):
    # as released code does: the second run of such a method leaves the state that the first one left
    text = template("released").replace(
        'with ctx.phase("select"):',
        f'with ctx.phase("select"):\n            import random, torch, numpy as np; {line}',
        1,
    )
    _load(text, tmp_path / "released.py", monkeypatch)
    arrays, own = np.random.get_state(), random.getstate()
    with scoped(torch.Generator()):
        wrong = [result.detail for result in check_method("released", tmp=tmp_path / "trial") if not result.ok]
    np.random.set_state(arrays)
    random.setstate(own)
    assert wrong == [USES_GLOBAL]


def test_one_mistake_is_reported_once(registry, tmp_path, monkeypatch):
    text = template("bright")
    assert "return " in text.partition("def make")[2]
    text = re.sub(r"(def make.*?)return ([^\n]+)", r"\1return (\2).float()", text, count=1, flags=re.DOTALL)
    _load(text, tmp_path / "bright.py", monkeypatch)
    results = check_method("bright", tmp=tmp_path / "trial")
    assert sum(result.ok for result in results) >= 6
    [failed] = [result for result in results if not result.ok and result.ran]
    assert "[0, 1]" in failed.detail
    unrun = [result for result in results if not result.ran]
    assert len(unrun) >= 4 and {(result.ok, result.detail) for result in unrun} == {(False, "not run")}


def test_a_name_that_is_no_name():
    with pytest.raises(RD3Error, match="Invalid method name"):
        template("My Method")


def test_a_method_that_nests_in_words_alone_is_told_so(registry, tmp_path, monkeypatch):
    text = template("grows")
    text = text.replace('ctx.rng("select", label)', 'ctx.rng(f"select {ctx.recipe.ipc}", label)')
    _load(text, tmp_path / "grows.py", monkeypatch)
    wrong = [result.detail for result in check_method("grows", tmp=tmp_path / "trial") if not result.ok]
    assert wrong == ["the images of IPC 1 are not the first ones of IPC 2"]

    text = template("backwards").replace("for k in range(recipe.ipc)", "for k in reversed(range(recipe.ipc))")
    _load(text, tmp_path / "backwards.py", monkeypatch)
    wrong = [result.detail for result in check_method("backwards", tmp=tmp_path / "trial") if not result.ok]
    assert wrong == ["block 0 of IPC 1 is not the beginning of the larger set's block"]


def test_a_method_that_makes_other_blocks_together_than_alone_is_told_so(registry, tmp_path, monkeypatch):
    text = template("crowded")
    text += """
    def make_many(self, blocks, ctx):
        return [self.make(block, ctx) for block in reversed(blocks)]
"""
    _load(text, tmp_path / "crowded.py", monkeypatch)
    [wrong] = [result for result in check_method("crowded", tmp=tmp_path / "trial") if not result.ok]
    assert wrong.name == "Blocks generated together equal those generated alone up to rounding"
    assert "% of the pixels differ by more than one level of 255" in wrong.detail


def test_a_method_that_has_a_seed_but_declares_none_is_told_so(registry, tmp_path, monkeypatch):
    text = template("fixed").replace("    Settings =", "    seeded = False\n    Settings =")
    _load(text, tmp_path / "fixed.py", monkeypatch)
    [wrong] = [result for result in check_method("fixed", tmp=tmp_path / "trial") if not result.ok]
    assert wrong.detail == "`seeded` is False, but set seeds 0 and 1 give different images"
