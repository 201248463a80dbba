"""Import a diffusion model that was trained elsewhere: a diffusers folder, or a model of the Hugging Face hub."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from rd3.datasets import Dataset
from rd3.device import usable_device
from rd3.diffusion.backbone import BACKBONES, Backbone, content_digest, write_backbone
from rd3.diffusion.derivation import Progress
from rd3.errors import BadValue, DataCorrupt, DataMissing, RD3Error
from rd3.recipe import BackboneRecipe, Data
from rd3.values import digest


def import_backbone(
    source: Path | str,
    *,
    dataset: Dataset,
    family: str,
    out: Path,
    revision: str | None = None,
    sha256: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda fraction, note: None,
) -> tuple[BackboneRecipe, dict[str, Any]]:
    """Store a published model as a backbone of ``dataset`` in ``out``; returns its recipe and its figures.

    ``source`` is a diffusers folder or the id of a model on the hub (``owner/name``), of which ``revision`` is a commit
    or tag.  Only safetensors files are read.  ``sha256`` is the expected digest of its tensors, as an earlier import
    printed it, or its beginning.

    Raises :class:`DataMissing` for a missing component or a model that cannot be downloaded, :class:`DataCorrupt` for
    files that cannot be read, weights that are not finite and another digest, and :class:`BadValue` for a model that
    does not know the dataset's classes.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-f]{3,64}", sha256.lower()):
        raise BadValue(f"{sha256!r} is not a sha256 digest.", "give at least its first 3 hexadecimal digits")
    started = time.perf_counter()
    backbone_class, out = BACKBONES.get(family), Path(out)
    folder, commit = _folder(source, backbone_class, revision)
    progress(0.1, "load")
    backbone = _loaded(backbone_class, folder, dataset).to(usable_device(device)).frozen()
    _check_finite(backbone, source)
    progress(0.6, "hash")
    content = content_digest(backbone)
    if sha256 is not None and not content.startswith(sha256.lower()):
        raise DataCorrupt(
            f"The tensors of {source} have sha256 {content[:12]}, expected {sha256[:12]}.",
            "check the revision, or download the model again",
        )
    recipe = BackboneRecipe(
        data=Data(name=dataset.info.name, fingerprint=dataset.fingerprint, split="unknown"),
        classes=dataset.info.classes,
        resolution=dataset.info.resolution,
        family=family,
        weights=digest([family, content, {name: _config(one) for name, one in backbone.networks().items()}]),
    )
    origin = {"origin": f"imported from {source}", "licence": _licence(folder), "revision": commit}
    write_backbone(out, backbone, recipe, content=content, **origin)
    progress(1.0, "stored")
    return recipe, {"parameters": backbone.size, "content": content, "wall_s": time.perf_counter() - started}


def _folder(source: Path | str, backbone_class: type[Backbone], revision: str | None) -> tuple[Path, str | None]:
    """The local folder of a model with all its components, and its commit if it is known."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise _no_folder(source)
        folder = _downloaded(str(source), revision)
    elif revision is not None and revision != _commit(folder):
        raise BadValue(
            f"{source} is a folder of {_commit(folder) or 'an unknown revision'}, not of {revision}.",
            "leave --revision out, or give the model's id on the hub",
        )
    missing = [name for name in backbone_class.components if not (folder / name).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataMissing(
            f"{source} lacks {' and '.join(missing)} of a {backbone_class.family} model; it has "
            f"{', '.join(there) or 'no folders'}.",
            f"give a diffusers folder with {', '.join(backbone_class.components)}",
        )
    return folder, _commit(folder)


def _no_folder(source: Path | str) -> DataMissing:
    return DataMissing(f"There is no folder {source}.", "give a diffusers folder, or the hub id of a model, owner/name")


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = ["*/*.json", "*/*.txt", "*/*.safetensors", "model_index.json", "README.md"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except RevisionNotFoundError:
        raise BadValue(f"{name} has no revision {revision}.", "give a commit or tag of that model") from None
    except HFValidationError:  # a path, such as ../dit
        raise _no_folder(name) from None
    except RepositoryNotFoundError:
        raise DataMissing(
            f"The hub has no public model {name}.", "check its id, and log in where it asks for that: hf auth login"
        ) from None
    except Exception as error:  # the hub's own, builtin ones, and those of the HTTP library that it happens to use
        reason = " ".join(str(error).split())[:200]
        raise DataMissing(
            f"{name} cannot be downloaded: {reason or type(error).__name__}",
            f"where there is a network: hf download {name} --local-dir DIR; then import DIR",
        ) from None


def _commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, or of one that its tool downloaded."""
    if re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    for path in sorted(folder.glob(".cache/huggingface/download/**/*.metadata")):
        first, _newline, _rest = path.read_text().partition("\n")
        if re.fullmatch("[0-9a-f]{40}", first):
            return first
    return None


def _licence(folder: Path) -> str | None:
    """The licence that the model's card states."""
    card = folder / "README.md"
    parts = card.read_text(errors="replace").split("---", 2) if card.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        stated = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    return str(stated["license"]) if isinstance(stated, dict) and "license" in stated else None


def _loaded(backbone_class: type[Backbone], folder: Path, dataset: Dataset) -> Backbone:
    try:
        return backbone_class.load(folder, dataset.info)
    except RD3Error:
        raise
    except Exception as error:  # diffusers and transformers raise their own and builtin ones
        reason = " ".join(str(error).split())[:300]
        raise DataCorrupt(
            f"{folder} cannot be loaded as a {backbone_class.family} model: {type(error).__name__}: {reason}",
            "download it again; only safetensors files are read",
        ) from None


def _check_finite(backbone: Backbone, source: Path | str) -> None:
    """Raise for weights that are not finite."""
    for component, network in backbone.networks().items():
        for name, value in network.named_parameters():
            if not bool(value.isfinite().all()):
                raise DataCorrupt(
                    f"{source} has values that are not finite in {component}, {name}.", "download it again"
                )


def _config(network: nn.Module) -> dict[str, Any]:
    """The configuration of a component, without the versions and paths that wrote it."""
    found: Any = network.config
    plain = found.to_dict() if hasattr(found, "to_dict") else dict(found)
    left_out = ("transformers_version", "torch_dtype", "dtype", "architectures")
    return {key: str(value) for key, value in plain.items() if not key.startswith("_") and key not in left_out}
