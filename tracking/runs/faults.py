"""Failures of MLflow, its database, its artifact storage and proxies before it: by text and by HTTP status."""

from __future__ import annotations

import errno
import fcntl
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rd3.errors import is_disk_full
from tracking.ledger.faults import Fault, Server, fault_in, without_password

SQLITE = {
    "is locked": Fault(
        "The {name} {database} is locked by another process.",
        "end that process (`fuser {database}` shows it); several machines need {shared}",
        waits=True,
    ),
    "disk I/O error": Fault(
        "The {name} {database} cannot be read or written: disk I/O error.",
        "check the disk, its quota and the limit of file sizes (`ulimit -f`)",
    ),
    "disk is full": Fault(
        "There is no space left for the {name} {database}.",
        "free space on that disk, or inodes if it has none left (`df -i`)",
    ),
    "is not a database": Fault(
        "Cannot write the {name} {database}: file is not a database.", "move that file away, or {elsewhere}"
    ),
    r"disk image is malformed|malformed database schema": Fault(
        "The {name} {database} is damaged.",
        "restore a backup, or move the file away: results and reports come from the ledger and are kept, {lost}",
    ),
    "unable to open database file": Fault(
        "The {name} {database} cannot be opened.", "make the file and its folder writable"
    ),
    "readonly database": Fault("The {name} {database} cannot be written.", "make the file and its folder writable"),
}
"""By patterns in the texts of SQLite's errors; a table such as :data:`MLFLOW_DATABASE` fills in the names."""
_NO_LOCKS = Fault(
    "The file system of {folder} has no file locks, which the {name} in it needs.",
    "{move}, or mount this one with locks (Lustre: `-o flock`)",
)
TEXTS = {
    **SQLITE,
    # Before the row of a full database: this is the end of a download on the machine that asks.
    r"(?s)occurred while downloading.*No space left on device": Fault(
        "There is no space left on this machine for files from MLflow at {where}.",
        "free space where RD3_HOME is (`rd3 artifacts gc`), or in the folder for temporary files",
    ),
    r"[Dd]isk ?[Ff]ull|could not extend file|No space left on device": Fault(
        "There is no space left for MLflow at {where}.", "free space on that disk"
    ),
    r"(?:password )?authentication failed|role \S+ does not exist": Fault(
        "The tracking database {where} rejects the login.", "set PGUSER and PGPASSWORD, or correct ~/.pgpass"
    ),
    r"database \S+ does not exist": Fault(
        "There is no such database at {where}.", "create it, or correct MLFLOW_TRACKING_URI"
    ),
    r"too many (?:clients|connections)|remaining connection slots": Fault(
        "The tracking database {where} has no free connection.",
        "run fewer trials at a time, or raise its max_connections",
        waits=True,
    ),
    r"(?s)/mlflow-artifacts/.*Connection aborted": Fault(
        "MLflow at {where} breaks off the connection when it should store or return a file.",
        "read its log, which has the reason: often the S3 credentials, endpoint or bucket of its own environment, "
        "which yours does not change",
        waits=True,
    ),
}
"""Patterns in the texts of errors of SQLite, PostgreSQL and the server's storage of files."""
STATUSES = {
    407: Fault("The proxy between here and {where} requires a login (407).", "put it into HTTP_PROXY and HTTPS_PROXY"),
    413: Fault(
        "The proxy before MLflow at {where} refuses a file of that size (413).",
        "raise its limit (nginx: client_max_body_size 0)",
    ),
    429: Fault("MLflow at {where} limits the rate of requests (429).", "run fewer trials at a time", waits=True),
    501: Fault("MLflow at {where} does not support this request (501).", "use a server of RD3's version of MLflow"),
    502: Fault(
        "The proxy before MLflow at {where} does not reach it (502).", "check MLflow behind that proxy", waits=True
    ),
    503: Fault("MLflow at {where} is overloaded or starting (503).", "check its log", waits=True),
    504: Fault(
        "The proxy before MLflow at {where} gave up waiting for it (504).",
        "raise its time limits (nginx: proxy_read_timeout and proxy_send_timeout), or check MLflow behind it",
        waits=True,
    ),
    507: Fault(
        "There is no space left where MLflow at {where} stores files (507).",
        "free space there (`rd3 artifacts gc`), or raise its quota",
    ),
}
"""HTTP statuses with a cause of their own."""


MLFLOW_DATABASE = {
    "name": "MLflow database",
    "elsewhere": "set MLFLOW_TRACKING_URI",
    "move": "set RD3_HOME, or MLFLOW_TRACKING_URI if it is set, to another file system",
    "lost": "but MLflow will show new runs only",
    "shared": "a tracking server",
}
"""What the texts of :data:`SQLITE` say of MLflow's database."""


def sqlite_fault(error: Exception, database: Path, texts: Mapping[str, str] = MLFLOW_DATABASE) -> Fault:
    """What is wrong with an SQLite database: MLflow's, unless ``texts`` says otherwise."""
    text = str(error)
    if re.search("disk I/O error|is locked|unable to open", text) and (refused := _refused(database.parent)):
        if refused.errno in _WITHOUT_LOCKS and "unable to open" not in text:
            return _NO_LOCKS.about(folder=database.parent, **texts)
        if is_disk_full(refused) and "unable to open" in text:  # no inode for its journal
            text = "disk is full"
    if fault := fault_in(text, SQLITE):
        return fault.about(database=database, **texts)
    return Fault(f"Cannot use the {texts['name']} {database}: {error}.", f"check that file, or {texts['elsewhere']}")


_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def _refused(folder: Path) -> OSError | None:
    """The error of creating a file in the folder and locking it with fcntl(2), as SQLite does; None without one."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def tracking_server(uri: str) -> Server:
    """The server of a tracking URI, as :func:`tracking.ledger.faults.connection_fault` names it."""
    name = f"The tracking server {without_password(uri)}"
    return Server(name, uri, "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_SERVER_CERT_PATH")
