#!/usr/bin/env python3
"""Pack what a machine without network needs to compute recipes: recipes, their parents, datasets, wheels.

    python infra/kit/pack.py RECIPES... --store DIR      # from `rd3 plan GRID --recipes RECIPES --store DIR`

writes the folder `.kit`, which travels with the repository; `infra/kit/run.py` is the command there.  See
docs/offline.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.settings import session  # noqa: E402
from rd3.campaign.command import read_recipes  # noqa: E402
from rd3.datasets import Roots, dataset_fingerprint, dataset_source, registration  # noqa: E402
from rd3.errors import BadValue, DataCorrupt, DataMissing, RD3Error  # noqa: E402
from rd3.recipe import Recipe, to_json  # noqa: E402
from rd3.store import FolderStore, now, sha256_file, write_atomically  # noqa: E402

LIMIT_MB = 60.0
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "pyyaml")
"""What rd3 needs besides torch, torchvision, timm, NumPy, SciPy, scikit-learn, pyarrow, safetensors and Pillow."""
TEST_WHEELS = ("pytest-timeout",)
DIFFUSION_WHEELS = ("diffusers", "importlib-metadata")
"""What diffusion models need besides transformers."""
ARCHIVE = "kit.tar.xz"
FOLDERS = ("recipes", "store", "data", "wheels")
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
LARGEST_NAMED = 6
"""Largest items that a refusal names."""


class Item(NamedTuple):
    """One file of the kit."""

    source: Path
    target: str
    """Path in the kit."""
    group: str
    """Name under which a refusal counts its size."""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        pack(chosen)
    except RD3Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pack.py", description=__doc__.split("\n")[0])
    parser.add_argument("recipes", type=Path, nargs="+", help="recipes, or folders of them, most valuable first")
    parser.add_argument("--store", type=Path, help="folder with the parents that are there (rd3 plan ... --store DIR)")
    parser.add_argument("--out", type=Path, default=ROOT / ".kit", help="the kit (default .kit of the repository)")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="MB that kit and repository may take together")
    parser.add_argument("--python", default="3.12", help="Python of the machine (default 3.12)")
    parser.add_argument("--wheel", action="append", metavar="NAME[==VERSION]", help="instead of the usual ones; repeat")
    parser.add_argument("--compress", action="store_true", help=f"a single file {ARCHIVE}, which run.py unpacks there")
    parser.add_argument("--no-wheels", action="store_true", help="the machine has them all")
    return parser


def pack(chosen: argparse.Namespace) -> None:
    """Write the kit anew, unless it is too large."""
    here = session()
    recipes = read_recipes(chosen.recipes)
    store = FolderStore(chosen.store.absolute()) if chosen.store else None
    wanted = [recipe for recipe in recipes if store is None or store.find(recipe.kind, recipe.key) is None]
    if not wanted:
        raise BadValue(f"All {len(recipes)} recipes are in {chosen.store} already.", "there is nothing to pack")
    items = [*_parents(wanted, store), *_datasets(wanted, here.roots)]
    if not chosen.no_wheels:
        items += _wheels(chosen.wheel or _needed_wheels(wanted), chosen.python, chosen.out / "wheels")
    documents = {
        f"recipes/{number:05d}-{recipe.kind}-{recipe.key[:12]}.json": to_json(recipe)
        for number, recipe in enumerate(wanted, 1)
    }
    replaced = [(chosen.out / folder).resolve() for folder in FOLDERS if folder != "wheels" or chosen.no_wheels]
    for source in (*chosen.recipes, *(item.source for item in items)):
        if any(source.resolve().is_relative_to(folder) for folder in replaced):
            raise BadValue(f"{source} is in the kit {chosen.out}, whose folders are replaced.", "choose another --out")
    if chosen.compress:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), items, documents)
            archive = _compressed(Path(folder))
            size = _check_size([Item(archive, ARCHIVE, f"the kit as {ARCHIVE}")], 0, chosen.out, chosen.limit)
            for name in FOLDERS:
                shutil.rmtree(chosen.out / name, ignore_errors=True)
            (chosen.out / "kit.json").unlink(missing_ok=True)
            chosen.out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(archive, chosen.out / ARCHIVE)
    else:
        size = _check_size(items, sum(map(len, documents.values())), chosen.out, chosen.limit)
        for folder in replaced:
            shutil.rmtree(folder, ignore_errors=True)
        (chosen.out / ARCHIVE).unlink(missing_ok=True)
        _write(chosen.out, items, documents)
    print(f"{len(wanted)} recipes of {len(recipes)} are in {chosen.out}; with the repository {size / 1e6:.1f} MB")


def _write(kit: Path, items: Sequence[Item], documents: Mapping[str, str]) -> None:
    """Write files and recipes (by path in the kit), and last ``kit.json`` with their hashes."""
    for item in items:
        target = kit / item.target
        target.parent.mkdir(parents=True, exist_ok=True)
        if target != item.source:
            shutil.copyfile(item.source, target)
    for name, document in documents.items():
        write_atomically(kit / name, document)
    files = {name: sha256_file(kit / name) for name in (*(item.target for item in items), *documents)}
    about = {"format": 1, "commit": _git("rev-parse", "HEAD"), "packed_at": now(), "files": files}
    write_atomically(kit / "kit.json", json.dumps(about, indent=1) + "\n")


def _compressed(kit: Path) -> Path:
    """An archive of the folder beside its files."""
    archive = kit / ARCHIVE
    with tarfile.open(archive, "w:xz", preset=6) as opened:
        for name in ("kit.json", *FOLDERS):
            if (kit / name).exists():
                opened.add(kit / name, name)
    return archive


def _parents(wanted: Sequence[Recipe], store: FolderStore | None) -> Iterator[Item]:
    """Entries and files of parents that are not among the recipes themselves."""
    made = {(recipe.kind, recipe.key) for recipe in wanted}
    needed = dict.fromkeys(parent for recipe in wanted for parent in recipe.parents() if parent not in made)
    found = {parent: entry for parent in needed if store is not None and (entry := store.find(*parent)) is not None}
    lacking = [parent for parent in needed if parent not in found]
    if lacking:
        kind, key = lacking[0]
        raise DataMissing(
            f"{len(lacking)} parents are neither among the recipes nor in the store, the first is {kind} {key[:12]}.",
            "write both with `rd3 plan GRID --recipes RECIPES --store DIR`, or plan the parents as well",
        )
    if store is None:  # nothing is needed
        return
    for (kind, key), entry in found.items():
        folder = store.fetch(kind, key)
        for name in entry.files:
            yield Item(folder / name, f"store/artifacts/{kind}/{key}/{name}", f"{kind} {key[:12]}")
        yield Item(store.root / f"by-key/{kind}/{key}.json", f"store/by-key/{kind}/{key}.json", f"{kind} {key[:12]}")


def _datasets(wanted: Sequence[Recipe], roots: Roots) -> Iterator[Item]:
    """Files of the datasets; raises :class:`DataCorrupt` unless they have the fingerprints in the recipes."""
    for name, fingerprint, training_only in {
        (recipe.data.name, recipe.data.fingerprint, recipe.training_only): None for recipe in wanted
    }:
        found = dataset_fingerprint(name, roots, training_only=training_only)
        if found != fingerprint:
            raise DataCorrupt(
                f"Dataset {name} here has fingerprint {found[:12]}, the recipes were written for {fingerprint[:12]}.",
                "plan again with this data",
            )
    for name in dict.fromkeys(recipe.data.name for recipe in wanted):
        folder = dataset_source(name, roots).survey(roots).folder
        if folder is None:
            continue
        if registration(name, roots) is not None:
            raise BadValue(f"Dataset {name} is registered here only.", "pack recipes of datasets that RD3 knows")
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):  # state of a download
                yield Item(path, f"data/{name}/{inside.as_posix()}", f"dataset {name}")


def _needed_wheels(recipes: Sequence[Recipe]) -> list[str]:
    """The wheels that these recipes need, in the versions of constraints.txt."""
    diffusion = any(recipe.kind == "backbone" or "backbone" in dict(recipe.parents()) for recipe in recipes)
    names = (*WHEELS, *TEST_WHEELS, *(DIFFUSION_WHEELS if diffusion else ()))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


def _wheels(names: Sequence[str], python: str, folder: Path) -> Iterator[Item]:
    """Wheels for the machine's Python, downloaded unless they are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = python.replace(".", "")
    wanted: list[Path] = []
    for name in names:
        found = _usable_wheel(folder, name, digits)
        if found is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            command += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{digits}", "--abi", "none"]
            command += [word for platform in (*PLATFORMS, "any") for word in ("--platform", platform)]
            done = subprocess.run([*command, "--dest", str(folder), name], capture_output=True, text=True, check=False)
            found = _usable_wheel(folder, name, digits)
            if done.returncode or found is None:
                said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
                raise DataMissing(f"There is no wheel of {name} for Python {python}: {said}", "name another --wheel")
        wanted.append(found)
    for path in folder.glob("*.whl"):
        if path not in wanted:
            path.unlink()
    for path in wanted:
        yield Item(path, f"wheels/{path.name}", "wheels")


def _usable_wheel(folder: Path, name: str, digits: str) -> Path | None:
    """The wheel of a project in a folder that Python ``digits`` (such as 312) can use."""
    project, _equals, version = name.partition("==")
    spelt, number = re.sub("[-_.]+", "[-_.]+", project), re.escape(version) if version else "[^-]+"
    pattern = re.compile(rf"{spelt}-{number}-(cp{digits}|.*py3|.*abi3)[-.].*", re.I)
    return next((path for path in sorted(folder.glob("*.whl")) if pattern.fullmatch(path.name)), None)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _repository_sizes(kit: Path) -> dict[str, int]:
    """Bytes of the repository's files, which travel as well, by the first two folders."""
    sizes: dict[str, int] = {}
    for name in _git("-c", "core.quotepath=off", "ls-files", "-co", "--exclude-standard").splitlines():
        path = ROOT / name
        if path.is_file() and not path.is_relative_to(kit.absolute()):
            group = "/".join(Path(name).parts[:2]) if len(Path(name).parts) > 2 else "the repository's other files"
            sizes[group] = sizes.get(group, 0) + path.stat().st_size
    return sizes


def _check_size(items: Sequence[Item], documents: int, kit: Path, limit: float) -> int:
    """Bytes of kit and repository; raises :class:`BadValue`, which names the largest items, above ``limit`` MB.

    ``documents``: bytes of the recipes.
    """
    sizes = _repository_sizes(kit)
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + item.source.stat().st_size
    total = sum(sizes.values()) + documents
    if total > limit * 1e6:
        largest = sorted(sizes.items(), key=lambda pair: -pair[1])[:LARGEST_NAMED]
        named = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest)
        raise BadValue(
            f"Kit and repository take {total / 1e6:.1f} MB, at most {limit:g} may travel. Largest, in MB: {named}.",
            "pack fewer recipes, or teachers that are trained there",
        )
    return total


if __name__ == "__main__":
    raise SystemExit(main())
