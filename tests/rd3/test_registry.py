"""Look-up by name, suggestions, and plugins that do not import."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint

import pytest

import rd3.registry
from rd3.augmentations import AUGMENTATIONS
from rd3.errors import BadValue, DataMissing, RD3Error, UnknownName
from rd3.losses import LOSSES
from rd3.methods import METHODS
from rd3.models import NETWORKS
from rd3.registry import Registry


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'sre2l'"):
        METHODS.get("sre2")


def test_shipped_methods_are_found_without_a_list():
    assert {"random", "rded", "sre2l"} <= set(METHODS.names())


def test_the_same_name_twice_is_refused():
    registry: Registry[type] = Registry("method", "rd3.methods")
    registry.register("mine")(int)
    with pytest.raises(RD3Error, match="registered twice"):
        registry.register("mine")(str)


def test_a_plugin_that_fails_to_import_says_so_and_harms_no_other(monkeypatch):
    point = EntryPoint(name="theirs", value="no_such_module_anywhere:Theirs", group="rd3.methods")
    monkeypatch.setattr(rd3.registry, "entry_points", lambda group: [point])
    registry: Registry[type] = Registry("method", "rd3.losses")
    assert registry.names() == []
    with pytest.raises(UnknownName, match=r"'theirs' fails to import: plugin no_such_mod.*: ModuleNotFoundError: "):
        registry.get("theirs")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package of plugins, importable as ``plugins_here``, and the folder that it is."""
    folder = tmp_path / "plugins_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("from rd3.registry import Registry\nR = Registry('thing', 'plugins_here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugins_here"]:
        del sys.modules[name]


GOOD = "from plugins_here import R\n@R.register('{name}')\ndef thing(): pass\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from rd3 import no_such_name\n", "line 1: ImportError: cannot import name 'no_such_name'"),
        ("def f(:\n", "SyntaxError: .*line 1"),
        ("import sys\nsys.exit('no licence')\n", "line 2: SystemExit: no licence"),
        (GOOD.format(name="m") + "1 / 0\n", "line 4: ZeroDivisionError: division by zero"),
        (GOOD.format(name="a"), "line 2: RD3Error: thing 'a' is registered twice"),
    ],
)
def test_a_file_that_fails_to_import_says_so_and_harms_no_other(package, text, reason):
    for name in ("a", "z"):
        (package / f"{name}.py").write_text(GOOD.format(name=name))
    (package / "m.py").write_text(text.replace("thing", "other"))
    registry = importlib.import_module("plugins_here").R
    assert registry.names() == ["a", "z"]
    with pytest.raises(UnknownName, match=rf"Thing 'm' fails to import: plugins_here/m\.py: {reason}") as caught:
        registry.get("m")
    assert caught.value.fix == "fix or remove it"
    assert list(registry.broken()) == ["m"]


def test_a_file_anywhere_gives_the_names_that_it_registers(package):
    (package / "a.py").write_text(GOOD.format(name="a"))
    registry = importlib.import_module("plugins_here").R
    path = package.parent / "random.py"
    path.write_text(GOOD.format(name="mine") + GOOD.format(name="too").replace("thing", "other"))
    assert registry.load_file(path) == ["mine", "too"]
    assert registry.names() == ["a", "mine", "too"]
    assert registry.load_file(path) == ["mine", "too"], "again, after an edit"
    for text, error, said in [
        ("x = 1\n", UnknownName, "registers no thing"),
        ("\nimport no_such_module\n", BadValue, "random.py fails to import: line 2: ModuleNotFoundError"),
        (GOOD.format(name="a").replace("thing", "other"), RD3Error, "registered twice"),
        (GOOD.format(name="a"), RD3Error, "registered twice"),  # a copy of a.py whose name was not changed
    ]:
        path.write_text(text)
        with pytest.raises(error, match=said):
            registry.load_file(path)
    for other in (package.parent / "absent.py", package):
        with pytest.raises(DataMissing, match="There is no file"):
            registry.load_file(other)
    (package / "text.txt").write_text("")
    with pytest.raises(BadValue, match="not a Python file"):
        registry.load_file(package / "text.txt")


def test_a_network_does_not_take_the_place_of_another():
    from rd3.models import NETWORKS, register_network

    before = NETWORKS.get("resnet18")
    with pytest.raises(RD3Error, match="network 'resnet18' is registered twice"):

        @register_network("resnet18", summary="mine", resolutions={32: "mine"})
        def mine(*_given: object) -> object:
            raise AssertionError

    assert NETWORKS.get("resnet18") is before


METHOD = """
from rd3.methods import Method, register_method
@register_method("of-a-cell", version={version})
class OfACell(Method):
    "One."
    def make(self, block, ctx): return {value}
    def cost(self, recipe, info, forward): return None
"""
LOSS = """
from rd3.losses import register_loss
@register_loss("of-a-cell", labels="hard")
def of_a_cell(student_logits, targets, settings): return {value} * student_logits.sum()
"""
AUGMENTATION = """
from rd3.augmentations import Augmentation, register_augmentation
@register_augmentation("of-a-cell")
class OfACell(Augmentation):
    def draw(self, batch, side, stream): return ()
    def apply(self, images, *draws): return {value} * images
"""
NETWORK = """
from rd3.models import register_network
@register_network("of-a-cell", summary="mine", resolutions={{32: "mine"}})
def of_a_cell(num_classes, resolution): return {value}
"""


@pytest.mark.parametrize(
    ("registry", "text", "said"),
    [
        (METHODS, METHOD, r"method 'of-a-cell' now has other code under the same version 1 .* raise its version to"),
        (LOSSES, LOSS, r"loss 'of-a-cell' now has other code \(.* give it another name to compute them again"),
        (AUGMENTATIONS, AUGMENTATION, "augmentation 'of-a-cell' now has other code .* give it another name"),
        (NETWORKS, NETWORK, "network 'of-a-cell' now has other code .* give it another name"),
    ],
)
def test_a_cell_that_is_run_again_with_other_code_says_that_results_are_reused(registry, text, said, monkeypatch):
    monkeypatch.setattr(registry, "_things", dict(registry._things))
    namespace = {"__name__": "__main__"}

    def cell(value: int, version: int = 1, more: str = "") -> object:
        exec(compile(text.format(value=value, version=version) + more, "<cell>", "exec"), namespace)
        return registry.get("of-a-cell")

    first = cell(1)
    again = cell(1, more="# a comment\n")  # warnings are errors in tests
    assert again is not first
    with pytest.warns(UserWarning, match=said):
        edited = cell(2)
    assert registry.get("of-a-cell") is edited is not again
    if text is METHOD:
        assert cell(3, version=2).version == 2
