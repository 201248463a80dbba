"""A loss or an augmentation with its settings, as an evaluation protocol (:mod:`rd3.protocol`) names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_serializer, model_validator

from rd3.values import Frozen


class NoSettings(Frozen):
    """Settings of a loss or an augmentation that has none."""


class Component(Frozen):
    """The name of a registered loss or augmentation, and its settings.

    Written as the name alone, ``kl``, or as a mapping of the name to its settings, ``{kl: {temperature: 4}}``.
    """

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and len(value) == 1 and not {"name", "settings"} & value.keys():
            [(name, settings)] = value.items()
            return {"name": name, "settings": {} if settings is None else settings}
        return value

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        return {self.name: self.settings}

    def __str__(self) -> str:
        return component_text(self.name, self.settings)


def component_text(name: str, settings: Mapping[str, Any]) -> str:
    """``resized_crop(min_area=0.5, antialias=True)``."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})" if settings else name


def plain_text(value: Any) -> str:
    """Readable form of a protocol value: components by name, lists of them joined by `` + ``, other lists by commas."""
    if isinstance(value, Component):
        return str(value)
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, settings)] = value.items()
        return component_text(name, settings or {})
    if isinstance(value, list | tuple):
        separator = ", " if any(isinstance(item, int | float) for item in value) else " + "
        return separator.join(plain_text(item) for item in value) or "none"
    return str(value)


def changes_text(changes: Mapping[str, Any]) -> str:
    """Readable form of protocol values by name, e.g. ``zeta=2, loss=mse_gt(gamma=0.1)``."""
    return ", ".join(f"{name}={plain_text(value)}" for name, value in changes.items())


def value_by_name(protocol: Mapping[str, Any], name: str) -> Any:
    """Value of a protocol field, of a setting of the loss, or of ``<augmentation>.<setting>``; None if absent.

    ``protocol`` is plain data, as :meth:`rd3.protocol.EvalProtocol.model_dump` gives it.
    """
    if name in protocol:
        return protocol[name]
    step, _dot, setting = name.rpartition(".")
    components = protocol["augmentation"] if step else [protocol["loss"]]
    for component in components:
        [(owner, settings)] = component.items()
        if not step or owner == step:
            return settings.get(setting)
    return None


def flat_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol's plain data with the settings of the loss among its fields and the augmentation as text."""
    [(loss, settings)] = protocol["loss"].items()
    return {**protocol, "loss": loss, **settings, "augmentation": plain_text(protocol["augmentation"])}
