"""A set of 1 GiB through S3 by the artifact path, beside boto3's own upload_file and download_file in the same run.

    python benchmarks/s3_transfer.py s3://bucket/prefix [--mib 1024] [--files 8] [--rounds 5]

The AWS_ variables name the server; the bucket must exist.  Ours and plain alternate, each transfer in a process of its
own, which first makes its client and transfers a small object, and then starts to measure time and peak memory.
``fetch ours`` is what RD3 does, with the hash of every file; ``download ours`` is the same without hashes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rd3.store import Entry, sha256_files
from tracking.ledger.s3 import S3Objects
from tracking.runs import artifacts

Way = Callable[[S3Objects, Path], object]


def _up(folder: Path, put: Callable[[str, Path], Any]) -> None:
    for path in sorted(folder.iterdir()):
        put(path.name, path)


def _down(folder: Path, get: Callable[[str, Path], Any]) -> None:
    target = folder.parent / "down"
    target.mkdir()
    for path in sorted(folder.iterdir()):
        get(path.name, target / path.name)


def entry_of(folder: Path) -> Entry:
    """The entry, whose hashes were computed beforehand, outside of all measurements."""
    return Entry.model_validate_json((folder.parent / "entry.json").read_bytes())


WAYS: dict[str, Way] = {
    "upload ours": lambda objects, folder: _up(folder, objects.upload),
    "upload plain": lambda objects, folder: _up(
        folder, lambda name, source: objects.client.upload_file(str(source), objects.bucket, objects.prefix + name)
    ),
    # Every sha256 is checked, as when a set is used.
    "fetch ours": lambda objects, folder: artifacts.fetch(entry_of(folder), folder.parent / "down"),
    "download ours": lambda objects, folder: _down(folder, objects.download),
    "download plain": lambda objects, folder: _down(
        folder, lambda name, target: objects.client.download_file(objects.bucket, objects.prefix + name, str(target))
    ),
}


def peak_kib() -> int:
    """Peak resident memory of this process since the peak was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def transfer(root: str, folder: Path, way: str) -> tuple[float, float, float]:
    """Do one transfer; returns wall seconds, process seconds and peak memory above idle in MiB."""
    objects = S3Objects(root)
    small = folder.parent / f"small{os.getpid()}"
    small.write_bytes(bytes(1000))
    objects.upload("small", small)
    objects.download("small", small)
    small.unlink()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    idle, cpu, start = peak_kib(), time.process_time(), time.perf_counter()
    WAYS[way](objects, folder)
    found = time.perf_counter() - start, time.process_time() - cpu, (peak_kib() - idle) / 1024
    shutil.rmtree(folder.parent / "down", ignore_errors=True)
    return found


def measure(root: str, folder: Path, way: str) -> tuple[float, float, float]:
    """A :func:`transfer` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(transfer, root, folder, way).result()
        except Exception as error:
            error.add_note(f"{way} failed")
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    for name, default in (("--mib", 1024), ("--files", 8), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        folder.mkdir()
        for number in range(asked.files):
            with open(folder / f"{number:05d}.bin", "wb") as stream:
                for _mib in range(asked.mib // asked.files):
                    stream.write(os.urandom(2**20))
        entry = Entry(kind="set", key="0" * 64, recipe={}, result={}, files=sha256_files(folder), artifact=asked.root)
        (Path(scratch) / "entry.json").write_text(entry.model_dump_json())
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for number in range(asked.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                found[way].append(measure(asked.root, folder, way))
                print(f"{way:15} {found[way][-1][0]:9.2f} s", flush=True)
        artifacts.fetch(entry, Path(scratch) / "last")  # what the store holds now is what was sent, by hash
    print(f"{asked.mib} MiB in {asked.files} files, {asked.rounds} rounds; load average {os.getloadavg()[0]:.1f}")
    print(f"{'':15} {'median s':>9} {'best s':>8} {'CPU s':>7} {'MiB above idle':>15}")
    for way, runs in found.items():
        wall, cpu, peak = zip(*runs, strict=True)
        print(
            f"{way:15} {statistics.median(wall):9.2f} {min(wall):8.2f} {statistics.median(cpu):7.2f} {max(peak):15.0f}"
        )
    for ours in ("upload ours", "fetch ours", "download ours"):
        plain = "upload plain" if ours == "upload ours" else "download plain"
        ratios = [one[0] / other[0] for one, other in zip(found[ours], found[plain], strict=True)]
        print(f"{ours} / {plain}: median of the rounds {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
