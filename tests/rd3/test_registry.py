"""Look-up by name, suggestions, and plugins that do not import."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import rd3.registry
from rd3.errors import RD3Error, UnknownName
from rd3.methods import METHODS, method_names
from rd3.registry import Registry


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'sre2l'"):
        METHODS.get("sre2")


def test_shipped_methods_are_found_without_a_list():
    assert {"random", "rded", "sre2l"} <= set(method_names())


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
    with pytest.raises(
        UnknownName, match=r"plugin that fails to import \(ModuleNotFoundError.*no_such_module_anywhere"
    ):
        registry.get("theirs")
