"""Immutable values, their canonical JSON and digest, and fields added after the first release."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Frozen(BaseModel):
    """Base class of values: immutable, without unknown fields, with finite numbers only, as :func:`canonical` needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PluginSettings(Frozen):
    """Base of the settings of methods and derivations, with what the docstrings of fields say as their descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def first_mistake(error: ValidationError, *outer: str) -> str:
    """The first mistake that pydantic found, as ``outer.field.subfield: message``."""
    first = error.errors()[0]
    return f"{'.'.join([*outer, *map(str, first['loc'])]) or 'the document'}: {first['msg']}"


def mistakes_in_field(model: type[BaseModel], others: dict[str, Any], name: str, value: Any) -> list[str]:
    """Mistakes in the value of one field, as pydantic's messages, without type coercion.

    ``others``: values of the other fields.  JSON rules: a list may be a tuple, but neither "100" nor true is a number.
    """
    try:
        text = json.dumps(others | {name: value})
    except TypeError:  # YAML also has dates
        return ["Input should be text, a number, a list or a mapping"]
    try:
        model.model_validate_json(text, strict=True)
    except ValidationError as error:
        return [entry["msg"] for entry in error.errors() if entry["loc"] and entry["loc"][0] == name]
    return []


def is_utf8(name: str) -> bool:
    """Whether a file name or path is text, and not bytes in another encoding, which Python has as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def neutral(value: Any, **field: Any) -> Any:
    """A field added after the first release; not part of the key while it equals ``value``."""
    return Field(default=value, json_schema_extra={"neutral": value}, **field)


@functools.cache
def neutral_values(model: type[BaseModel]) -> Mapping[str, Any]:
    """Fields of a model that were added after the first release, with their neutral values as JSON has them."""
    extras = ((name, field.json_schema_extra) for name, field in model.model_fields.items())
    found = {name: extra["neutral"] for name, extra in extras if isinstance(extra, dict) and "neutral" in extra}
    return MappingProxyType(json.loads(json.dumps(found)))


def _drop_neutral(model: BaseModel, plain: dict[str, Any]) -> None:
    for name, value in neutral_values(type(model)).items():
        if plain[name] == value:
            del plain[name]
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            _drop_neutral(value, plain[name])


def without_neutral(model: BaseModel) -> dict[str, Any]:
    """The model as plain data, without fields equal to their neutral value."""
    plain = model.model_dump(mode="json")
    _drop_neutral(model, plain)
    return plain
