"""Datasets by name: list, describe and open them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rd3.datasets._base import Dataset, DatasetInfo, Roots
from rd3.datasets._source import SOURCES, Source
from rd3.datasets._user import Registration, UserSource, user_sources
from rd3.errors import DataCorrupt, UnknownName
from rd3.registry import did_you_mean
from rd3.values import first_mistake


def dataset_names(roots: Roots | None = None) -> list[str]:
    """Names of all datasets; with ``roots`` including those that the user registered."""
    return sorted({*SOURCES.names(), *(user_sources(roots) if roots else {})})


def dataset_source(name: str, roots: Roots | None = None) -> Source:
    """The source of that name; raises UnknownName with a suggestion."""
    users = user_sources(roots) if roots else {}
    if name in users:
        return users[name]
    if name not in SOURCES and name not in SOURCES.broken():
        raise UnknownName(f"There is no dataset {name!r}.", did_you_mean(name, dataset_names(roots)))
    return SOURCES.get(name)()


def dataset_info(name: str, roots: Roots | None = None) -> DatasetInfo:
    """Description of a dataset; reads none of its files.  Raises UnknownName."""
    return dataset_source(name, roots).info


def open_dataset(name: str, roots: Roots, *, training_only: bool = False) -> Dataset:
    """Open a dataset; raises DataMissing with the folders searched, DataCorrupt or ClassOrderError.

    ``training_only``: without the test split.  No test file is opened, and accessing a test image raises BadValue.
    """
    source = dataset_source(name, roots)
    return source.open_training(roots) if training_only else source.open(roots)


def dataset_fingerprint(name: str, roots: Roots, *, training_only: bool = False) -> str:
    """The fingerprint of a dataset, cached while its files do not change; raises like :func:`open_dataset`."""
    return dataset_source(name, roots).fingerprint(roots, training_only)


def fingerprint_in(folder: Path, roots: Roots, entry: dict[str, Any] | None = None) -> str:
    """The fingerprint of a copy of a dataset in a folder named after it; raises like :func:`open_dataset`.

    ``entry``: the registration, for a dataset that the user registered; it may come from others, and raises
    :class:`DataCorrupt` if it is of another dataset or leads out of the folder.
    """
    source = UserSource(_registration(folder, entry)) if entry else SOURCES.get(folder.name)()
    return source.fingerprint(replace(roots, data=folder.parent))


def _registration(folder: Path, entry: dict[str, Any]) -> Registration:
    again = f"register {folder.name} again where it comes from"
    try:
        found = Registration.model_validate({**entry, "folder": folder})
    except ValidationError as error:
        raise DataCorrupt(f"The registration of {folder.name} cannot be read: {first_mistake(error)}.", again) from None
    if found.info.name != folder.name:
        raise DataCorrupt(f"The registration of {folder.name} is one of {found.info.name!r}.", again)
    for part in (found.train, found.test or "."):
        if not (folder / part).resolve().is_relative_to(folder.resolve()):
            raise DataCorrupt(f"The registration of {folder.name} leads out of its folder, to {part!r}.", again)
    return found
