"""Reads the environment: the locations of data, state and the tracking server."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from rd3.errors import BadValue
from rd3.one_level import one_level_down
from rd3.registry import did_you_mean
from rd3.values import is_utf8
from tracking.place import Place

if TYPE_CHECKING:
    from tracking.ledger.ledger import Ledger
    from tracking.store import TrackedStore

ADDRESSES = ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA", "RD3_HOME")
"""Variables that are sent to a cluster.  None is a secret: nodes have credentials in their own environment."""


@dataclass(frozen=True)
class Session(Place):
    """The addresses that a command works with, and the ledger, store and presets at them."""

    @property
    def presets(self) -> Path:
        """Folder of the user's own protocols, one YAML file each."""
        return self.home / "presets"

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The ledger at the artifact root, with one client for all that the session asks of it."""
        from tracking.ledger.ledger import Ledger

        return Ledger(self.artifacts)

    @functools.cached_property
    def store(self) -> TrackedStore:
        """The ledger's entries with their files; a result that is put into it also gets an MLflow run."""
        from tracking.store import TrackedStore

        return TrackedStore(self)

    def with_identity(self, lease: str = "", work: str = "") -> Session:
        """The same addresses with the ledger's identity, which the holder of a ``lease`` creates if there is none.

        ``work`` says what its holder runs.
        """
        from tracking.ledger.identity import identity
        from tracking.ledger.lease import current_user

        ledger_id = identity(self.ledger.objects, create=bool(lease))
        return replace(self, ledger_id=ledger_id, lease=lease, user=current_user(), work=work)

    def __getstate__(self) -> dict[str, Any]:
        """Addresses alone travel to workers; clients stay in their process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("ledger", "store")}


def given(env: Mapping[str, str], name: str) -> str:
    """A variable's value, empty if it is not set; raises BadValue for quotation marks or white space around it.

    ``docker --env-file`` and systemd keep what a shell would remove, and files from Windows end their lines in CR.
    """
    text = env.get(name, "")
    plain = _unquoted(text)
    if plain == text:
        return text
    from tracking.ledger.faults import without_password

    what = "white space around it" if plain == text.strip() else "quotation marks that are a part of it"
    shown, value = text.replace(plain, without_password(plain)), without_password(plain)
    raise BadValue(f"{name} is {shown!r}, with {what}.", f"write {name}={value}, as it is read without a shell")


def _unquoted(text: str) -> str:
    """The text without white space around it and then without a pair of equal quotation marks around that."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _split(uri: str, name: str) -> SplitResult:
    """The parts of an address; raises BadValue, which does not show it, for one such as ``http://[::1``."""
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise BadValue(f"{name} cannot be read as an address: {error}.", f"correct {name}") from None


def _without_secret(uri: str, name: str) -> str:
    """The address unchanged; raises BadValue for one with a password, as it is sent to trials, logs and tables."""
    from tracking.ledger.faults import has_password

    parts = _split(uri, name)
    if not has_password(uri):
        return uri
    if uri.startswith("s3"):
        fix = "remove key and secret, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif uri.startswith("http") and parts.password is None:
        fix = "remove everything from the question mark on, and set MLFLOW_TRACKING_TOKEN to a token"
    elif uri.startswith("http"):
        fix = "remove it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        fix = "remove it; PostgreSQL takes it from PGPASSWORD, or from a file of yours that PGPASSFILE names"
    raise BadValue(f"{name} contains a password, which others could read.", fix)


def _folder(text: str, name: str) -> Path:
    """An absolute path without ``~``; raises BadValue for one that an address or MLflow's filters cannot hold."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadValue(f"{name} is {text}, and there is no such home folder.", f"write {name} without '~'") from None
    if not is_utf8(str(path)):
        raise BadValue(f"{name} is {str(path)!r}, which is not UTF-8.", f"set {name} to another folder, or rename it")
    if not str(path).isprintable() or {"'", '"'} <= set(str(path)):
        raise BadValue(
            f"{name} is {str(path)!r}, which has control characters or both kinds of quotation marks.",
            f"set {name} to another folder",
        )
    return path


def artifact_root(text: str, name: str = "RD3_ARTIFACTS") -> str:
    """An artifact root as it is known everywhere: an absolute path, or the URI of a bucket unchanged."""
    if text.startswith("file:"):
        if _split(text, name).netloc not in ("", "localhost"):
            raise BadValue(f"{name} is {text}, which names a host.", f"write {name}=file:///PATH, or the path alone")
        text = unquote(urlsplit(text).path)
    if missing := re.match(r"([a-z][a-z0-9+.-]+):/(?!/)", text):
        scheme = missing[1]
        raise BadValue(f"{name} is {text}, which has one slash.", f"write {scheme}://{text[missing.end() :]}")
    return _without_secret(text, name) if "://" in text else str(_folder(text, name))


def tracking_address(text: str, name: str = "MLFLOW_TRACKING_URI") -> str:
    """A tracking URI whose SQLite database, if it is one, has an absolute path; without a password."""
    if text.startswith("http") and "#" in _without_secret(text, name):
        server = re.split("[?#]", text)[0].rstrip("/")
        raise BadValue(f"{name} is {text}, the address of a page of MLflow.", f"write that of its server: {server}")
    start, slashes, rest = text.partition(":///")
    path, mark, query = rest.partition("?")
    if not slashes or start.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return _without_secret(text, name)
    path = str(_folder(path, name))
    if re.search("%[0-9A-Fa-f]{2}", path):  # versions of SQLAlchemy differ in whether they decode it
        raise BadValue(
            f"{name} leads to the database {path}, and an SQLite address cannot hold its '%'.",
            f"set {name} to another path",
        )
    return f"{start}:///{path}{mark}{query}"


def _database_in(home: Path) -> str:
    if "?" in str(home):
        fix = "set RD3_HOME to another folder, or MLFLOW_TRACKING_URI to a database elsewhere"
        raise BadValue(f"RD3_HOME is {home}, and the SQLite address of its database cannot hold '?'.", fix)
    return tracking_address(f"sqlite:///{home / 'mlflow.db'}", "RD3_HOME")


def session(env: Mapping[str, str] | None = None) -> Session:
    """From ``RD3_HOME`` (default ``.rd3``), ``RD3_DATA``, ``MLFLOW_TRACKING_URI`` and ``RD3_ARTIFACTS``.

    The only place where ``~`` and relative paths become absolute.  Raises BadValue for paths that cannot be used.
    """
    env = os.environ if env is None else env
    home = _folder(given(env, "RD3_HOME") or ".rd3", "RD3_HOME")
    data, tracking_uri = given(env, "RD3_DATA"), given(env, "MLFLOW_TRACKING_URI")
    named = given(env, "RD3_ARTIFACTS")
    artifacts = artifact_root(named or str(home / "artifacts"))
    _say_if_deeper("RD3_ARTIFACTS" if named else "RD3_HOME", artifacts if named else str(home))
    return Session(
        tracking_uri=tracking_address(tracking_uri) if tracking_uri else _database_in(home),
        artifacts=artifacts,
        home=home,
        data=_folder(data, "RD3_DATA") if data else None,
    )


@functools.cache
def _say_if_deeper(name: str, folder: str) -> None:
    """Say once on stderr that a folder of results, set by the variable ``name``, has none, but one below it has.

    So it is after a copy into a folder that existed, such as ``cp -r .rd3 backup``.
    """
    if "://" in folder:
        return
    root, inside = Path(folder), Path("by-key" if name == "RD3_ARTIFACTS" else "artifacts/by-key")
    with contextlib.suppress(OSError):
        if (root / inside).is_dir():
            return
        deeper = one_level_down(root, lambda one: (one / inside).is_dir())
        if not deeper and not root.exists():  # the folder that it is in may be the one too many
            beside = one_level_down(root.parent, lambda one: (one / root.name / inside).is_dir())
            deeper = [one / root.name for one in beside if len(beside) == 1]  # several are other projects
        if deeper:
            found = ", ".join(map(str, deeper[:3])) + (", ..." if len(deeper) > 3 else "")
            sys.stderr.write(
                f"{root} contains no results, but there are some one level deeper, in {found}. To use them: "
                f"export {name}={shlex.quote(str(deeper[0]))}\n"
            )


def trial_log_path(home: Path) -> Path:
    """The log of trials, which :mod:`pipelines.engine.trial_log` reads and writes."""
    return home / "trials.jsonl"


def writing_session() -> Session:
    """The session of a command that writes, after :func:`prepare_home`."""
    here = session()
    prepare_home(here)
    return here


def prepare_home(here: Session) -> None:
    """Before something is written: raise BadValue for a home that cannot be written, and :func:`settle_home`."""
    if why := _unwritable(here.home):
        raise BadValue(f"RD3's home {here.home} cannot be written: {why}.", "set RD3_HOME to a writable folder")
    _require_writable_files(here)
    settle_home(here)


def _require_writable_files(here: Session) -> None:
    """Raise BadValue if database or log of trials may not be written, as those of another user with umask 022."""
    from tracking.runs.reachable import sqlite_file

    files = [path for path in (sqlite_file(here.tracking_uri), trial_log_path(here.home)) if path and path.exists()]
    if others := [path for path in files if not os.access(path, os.W_OK)]:
        try:
            owner = others[0].owner()
        except KeyError:  # a number without a name
            owner = f"user {others[0].stat().st_uid}"
        raise BadValue(
            f"There is no permission to write to {' and '.join(map(str, others))}, which {owner} owns.",
            "set RD3_HOME to a folder of your own; or let the owner share it with your group: "
            f"chmod -R g+rwX {here.home}, and umask 002 for everybody who runs RD3 there",
        )


def settle_home(here: Session) -> None:
    """Rewrite the addresses in RD3's own database if the home was moved or copied.

    What was changed, and files that are stored elsewhere, are said on stderr.
    """
    from tracking.upkeep.relocate import settle

    for line in settle(here):
        sys.stderr.write(f"{line}\n")


def _unwritable(folder: Path) -> str:
    """Why files cannot be created in a folder, or it cannot be created; empty if they can.  Writes nothing."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"{there} is not a folder"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return "its file system is read-only"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"no permission to write to {there}"


@contextlib.contextmanager
def reading_session(*, may_create_home: bool = False) -> Iterator[Session]:
    """The session of a command that reads: without a home, decoded datasets are in a temporary folder.

    ``may_create_home``: rather create the home where that is possible, so that fingerprints of datasets are kept in it.
    """
    here = session()
    if here.home.is_dir() or (may_create_home and not _unwritable(here.home)):
        yield here
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield replace(here, decoded=Path(scratch))


def addresses_to_share() -> dict[str, str]:
    """Those addresses of this environment that a cluster may share: artifact root and tracking server."""
    return {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS") if os.environ.get(name)}


def addresses(words: list[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` words; raises BadValue for a name that is not in :data:`ADDRESSES`."""
    found: dict[str, str] = {}
    for word in words:
        name, _equals, value = word.partition("=")
        if name not in ADDRESSES or not value:
            raise BadValue(
                f"--env accepts {', '.join(ADDRESSES)} as NAME=VALUE, got {name!r}.",
                did_you_mean(name, ADDRESSES) if name not in ADDRESSES else f"write {name}=VALUE",
            )
        found[name] = given({name: value}, name)
    return found


def driver_secrets() -> dict[str, str]:
    """Variables in the file ``RD3_DRIVER_ENV``: credentials for a driver on a node whose trials have none."""
    named = given(os.environ, "RD3_DRIVER_ENV")
    if not named:
        return {}
    path = _folder(named, "RD3_DRIVER_ENV")
    try:
        if path.stat().st_mode & 0o077:
            raise BadValue(f"Other users can read {path}, the file in RD3_DRIVER_ENV.", f"chmod 600 {path}")
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadValue(
            f"Cannot read {path}, the file in RD3_DRIVER_ENV: {reason}.", "fix or unset the variable"
        ) from None
    if any("=" not in line for line in lines):
        raise BadValue(f"{path}, the file in RD3_DRIVER_ENV, has a line without '='.", "write each line as NAME=VALUE")
    found = {name.strip(): value for name, _equals, value in (line.partition("=") for line in lines)}
    for name, value in found.items():
        if _unquoted(value) != value or not name.isidentifier():
            raise BadValue(
                f"{path}, the file in RD3_DRIVER_ENV, has quotation marks, spaces or other words beside {name}.",
                "write each line as NAME=VALUE, as it is read without a shell",
            )
    return found
