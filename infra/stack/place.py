"""Where a stack lives: its folders, ports and secrets, for every part of it."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
from pathlib import Path

BUCKET = "rd3"
S3_KEY = "rd3:rd3"
USER = "rd3"
HEAD_IP, WORKER_IP = "127.0.0.2", "127.0.0.3"
PORTS = 200
_PASSED = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "PYTHONPATH", "RD3_DATA", "OMP_NUM_THREADS", "VIRTUAL_ENV")
"""Environment variables passed to the parts; credentials and proxies of the user who starts them are left out."""


class StackError(Exception):
    """An error whose message is for the user of the stack."""


class Place:
    """One stack: everything below ``home`` (but for Ray's sockets), :data:`PORTS` ports from ``port``."""

    def __init__(self, home: Path, port: int):
        self.home = home
        self.secrets, self.run, self.logs = home / "secrets", home / "run", home / "log"
        self.s3_home = home / "s3"
        # Ray's sockets must have short paths.
        name = f"rd3-stack-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
        self.ray_folder = Path(tempfile.gettempdir()) / name
        self.mlflow_port, self.postgres_port = port, port + 1
        self.s3_port = port + 20  # uses +10, +11, +12 of it as well
        self.ray_ports = range(port + 40, port + PORTS)
        """Services of the head from the first on, of the worker from +20; processes of both from +60 (``RayNode``)."""
        self.mlflow_uri = f"http://127.0.0.1:{self.mlflow_port}"
        self.s3_uri = f"http://127.0.0.1:{self.s3_port}"
        self.ray_address = f"{HEAD_IP}:{self.ray_ports[0]}"
        self.dashboard_uri = f"http://127.0.0.1:{self.ray_ports[1]}"

    @classmethod
    def from_environment(cls) -> Place:
        home = Path(os.environ.get("STACK_HOME") or ".stack").expanduser().absolute()
        port = os.environ.get("STACK_PORT") or "15000"
        if not port.isdecimal() or not 0 < int(port) <= 65536 - PORTS:
            raise StackError(f"STACK_PORT is {port!r}. Fix: set it to the first of {PORTS} free ports, such as 15000")
        return cls(home, int(port))

    def prepare(self) -> None:
        """The folders: the database's user may pass through ``home``, and nobody else reads what is in it."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o711)
        for folder in (self.secrets, self.run, self.logs, self.ray_folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    def secret(self, name: str) -> str:
        """A generated secret, made at the first call and kept in a file that only its owner reads."""
        path = self.secrets / name
        if not path.exists():
            self.write_secret(name, secrets.token_hex(24))
        return path.read_text()

    def write_secret(self, name: str, text: str) -> Path:
        """``text`` in a file of mode 600, whole or not at all."""
        path = self.secrets / name
        handle, neighbour = tempfile.mkstemp(dir=self.secrets)  # mkstemp makes it 600
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(neighbour, path)
        return path

    @property
    def plain(self) -> dict[str, str]:
        """The environment that every part starts from."""
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        return passed | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{passed.get('PATH', os.defpath)}"}

    @property
    def login(self) -> dict[str, str]:
        """How an ordinary user reaches the tracking server."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.secret("mlflow-user"),
        }

    @property
    def s3(self) -> dict[str, str]:
        """How the driver and the tracking server reach the objects."""
        return {
            "AWS_ENDPOINT_URL": self.s3_uri,
            "AWS_ACCESS_KEY_ID": S3_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret("s3"),
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def ray_token(self) -> dict[str, str]:
        self.secret("ray-token")
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.secrets / "ray-token")}

    @property
    def user_environment(self) -> dict[str, str]:
        """What a driver sets to use the stack."""
        addresses = {"RAY_ADDRESS": self.ray_address, "RAY_API_SERVER_ADDRESS": self.dashboard_uri}
        return self.login | self.s3 | {"RD3_ARTIFACTS": f"s3://{BUCKET}/rd3"} | addresses | self.ray_token
