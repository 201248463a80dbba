"""The hash of code of one's own: equal for equal code, another one for what changes a result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rd3.methods import METHODS
from rd3.own_code import code_hash

CODE = """
from functools import cached_property, partial, wraps
FACTOR = 3
def helper(x):
    return x + FACTOR
def twice(function):
    @wraps(function)
    def both(*given): return 2 * function(*given)
    return both
class Base:
    def start(self): return 4
class Mine(Base):
    "What it is."
    shift = (5, {"a": 6})
    def make(self, x):
        # how
        return helper(x) if x in {"p", "q", "r"} else [one * 7 for one in x]
    @property
    def size(self): return 8
    @twice
    def cost(self, most=9): return super().start()
"""


def hash_of(code: str, *, helpers: bool = True, module: str = "__main__") -> str | None:
    namespace: dict[str, object] = {"__name__": module}
    exec(code, namespace)
    return code_hash(namespace["Mine"], helpers=helpers)


@pytest.mark.parametrize("old", ["start(self): return 4", "(5,", '"a": 6', "one * 7", "return 8", "most=9", '"q"'])
def test_what_a_method_does_is_in_its_hash(old: str):
    digit = next((character for character in reversed(old) if character.isdigit()), "q")
    edited = CODE.replace(old, old.replace(digit, "1"))
    assert edited != CODE and hash_of(edited) != hash_of(CODE)
    assert hash_of(edited, helpers=False) != hash_of(CODE, helpers=False)


@pytest.mark.parametrize(("old", "new"), [("FACTOR = 3", "FACTOR = 4"), ("x + FACTOR", "x - FACTOR")])
def test_helpers_of_its_module_are_in_its_hash(old: str, new: str):
    assert hash_of(CODE.replace(old, new)) != hash_of(CODE)
    assert hash_of(CODE.replace(old, new), helpers=False) == hash_of(CODE, helpers=False)


def test_comments_docstrings_and_place_are_not():
    edited = CODE.replace("# how", "# in which way\n").replace("What it is.", "What this is.")
    assert edited != CODE and hash_of(edited) == hash_of(CODE) == hash_of(CODE, module="of_a_file")


def test_another_process_finds_the_same():
    script = CODE + "\nfrom rd3.own_code import code_hash\nprint(code_hash(Mine))"
    for seed in ("1", "2"):
        run = [sys.executable, "-c", script]
        found = subprocess.run(
            run, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == hash_of(CODE)


def test_code_that_ships_with_rd3_has_none():
    assert code_hash(METHODS.get("random")) is None
