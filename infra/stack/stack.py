"""The whole platform on loopback, without containers: PostgreSQL, S3, MLflow, a Ray head and a Ray worker.

Written for Debian; run by ``stack.sh`` with the Python that has Ray and MLflow.  State, logs and generated secrets are
in STACK_HOME (default ``.stack``); ports are the 200 from STACK_PORT (default 15000), so several stacks fit a machine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator

from parts import PARTS, Part, RayHead, RayWorker
from place import Place, StackError


@contextlib.contextmanager
def _alone(place: Place) -> Iterator[None]:
    """One command at a time."""
    while True:
        place.prepare()
        with (place.run / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:  # else the command before, a wipe, has removed it with the folders
                yield
                return


def start(parts: list[Part]) -> None:
    """Start the parts that are not up, in order, each once the one before answers."""
    parts = list(parts)
    for part in parts:  # may grow
        if part.processes.alive() and part.answers():
            continue
        part.processes.end(part.stop_with)  # what a crash has left
        if isinstance(part, RayHead):
            _restart_worker(part, parts)
        part.check_ports()
        begun = time.monotonic()
        launches = 0
        while not _launched(part):
            launches += 1
            if launches == part.launches:
                last = part.log.read_text(errors="replace").splitlines()[-15:]
                said = [f"{part.name} did not come up; the last lines of {part.log}:", *last]
                raise StackError("\n".join(said))
            part.processes.end(part.stop_with)
        part.ready()
        print(f"{part.name:<11} {part.address}  ({time.monotonic() - begun:.1f} s)", flush=True)


def _launched(part: Part) -> bool:
    """Launch a part, and wait until it answers; False if it ends before, or takes too long."""
    part.launch()  # which may install something first
    begun = time.monotonic()
    while not part.answers():
        if not part.processes.alive() or time.monotonic() - begun > part.give_up_after_s:
            return False
        time.sleep(0.2)
    return True


def _restart_worker(head: RayHead, parts: list[Part]) -> None:
    """End the worker as well, which a new head does not know, and put it among the parts to start."""
    worker = RayWorker(head.place)
    if worker.processes.members():
        worker.processes.kill()
        if not any(isinstance(part, RayWorker) for part in parts):
            parts.append(worker)


def stop(parts: list[Part]) -> None:
    for part in reversed(parts):
        part.processes.end(part.stop_with)


def kill(parts: list[Part]) -> None:
    """Send SIGKILL to every process of the parts, as in a crash."""
    for part in parts:
        part.processes.kill()


def status(parts: list[Part]) -> bool:
    """Print a line per part; returns whether all are up."""
    states = []
    for part in parts:
        states.append("down" if not part.processes.alive() else "up" if part.answers() else "deaf")
        print(f"{part.name:<11} {states[-1]:<6} {part.address}")
    return set(states) == {"up"}


def wipe(place: Place) -> None:
    """Stop all, and remove data, secrets and logs."""
    stop([part(place) for part in PARTS])
    shutil.rmtree(place.ray_folder, ignore_errors=True)
    shutil.rmtree(place.home)


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="stack.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("start", "start what is not up, and wait until it answers"),
        ("stop", "end parts in an orderly way"),
        ("kill", "end parts as a crash would, with SIGKILL"),
        ("status", "say what is up; exit code 1 if anything is not"),
        ("pids", "print the numbers of all processes of parts"),
    ):
        count, default = ("+", "") if name == "kill" else ("*", " (default: all)")
        command = commands.add_parser(name, help=text)
        command.add_argument("parts", nargs=count, metavar="PART", help=f"of {', '.join(names)}{default}")
    commands.add_parser("env", help='print what a shell has to export to use the stack: eval "$(stack.sh env)"')
    commands.add_parser("wipe", help="stop all, remove data, secrets and logs")
    asked = parser.parse_args()
    if unknown := set(getattr(asked, "parts", ())) - set(names):
        parser.error(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    place = Place.from_environment()
    parts = [part(place) for part in PARTS if part.name in (getattr(asked, "parts", None) or names)]
    with _alone(place):
        if asked.command == "env":
            print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in place.user_environment.items()))
        elif asked.command == "wipe":
            wipe(place)
        elif asked.command == "status":
            raise SystemExit(0 if status(parts) else 1)
        elif asked.command == "pids":
            print(*sorted(set().union(*(part.processes.members() for part in parts))))
        else:
            {"start": start, "stop": stop, "kill": kill}[asked.command](parts)


if __name__ == "__main__":
    try:
        main()
    except StackError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
