"""The parts of a stack: how each is prepared, started and checked."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from place import BUCKET, HEAD_IP, WORKER_IP, Place, StackError
from processes import Processes


class Part:
    """One part.  Subclasses define how it starts and when it counts as up."""

    name: str
    address: str
    """For users."""
    ports: Mapping[int, str]
    """Ports that must be free before the start, with the address each is taken on."""
    give_up_after_s = 60.0
    launches = 1
    """Attempts to start it before that counts as failed."""
    stop_with = signal.SIGTERM

    def __init__(self, place: Place):
        self.place = place
        self.processes = Processes(place.run / f"{self.name}.json")
        self.log = place.logs / f"{self.name}.log"

    def launch(self) -> None:
        """Prepare what is not there yet, and start the processes."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it answers requests."""
        raise NotImplementedError

    def ready(self) -> None:
        """Create what it must contain, such as users, once it answers."""

    def spawn(self, command: list[str], env: dict[str, str]) -> None:
        self.processes.start(command, env, self.log, cwd=self.place.home)

    def check_ports(self) -> None:
        for port, host in self.ports.items():
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
                try:
                    one.bind((host, port))
                except OSError as error:
                    raise StackError(
                        f"{self.name} cannot have port {port} of {host} ({error.strerror}). "
                        "Fix: set STACK_PORT to the first of 200 free ports"
                    ) from None


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """(status, body) of a GET; (0, empty) without a response."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, http.client.HTTPException):  # a server that stops in mid-reply, or no HTTP server
        return 0, b""


def _run(
    command: list[str], what: str, *, env: Mapping[str, str], cwd: str | None = None, input: str | None = None
) -> None:
    done = subprocess.run(
        command, env=env, cwd=cwd, input=input, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise StackError(f"{what} failed:\n{done.stdout[-2000:]}")


class Postgres(Part):
    """PostgreSQL of the system's packages, as the system's user for it where we are root."""

    name = "postgres"
    stop_with = signal.SIGINT  # its fast shutdown: open transactions are rolled back

    def __init__(self, place: Place):
        super().__init__(place)
        self.address, self.ports = f"127.0.0.1:{place.postgres_port}", {place.postgres_port: "127.0.0.1"}
        self.data = place.home / "postgres" / "data"

    def _binaries(self) -> Path:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
        if found:
            return found[-1].parent
        if on_path := shutil.which("postgres"):
            return Path(on_path).resolve().parent
        if os.geteuid() or not shutil.which("apt-get"):
            raise StackError("There is no PostgreSQL here. Fix: apt-get install postgresql")
        quiet = {**self.place.plain, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
        _run([*apt, "update"], "apt-get update", env=quiet)
        _run([*apt, "install", "--no-install-recommends", "postgresql-common"], "apt-get install", env=quiet)
        settings = Path("/etc/postgresql-common/createcluster.conf")
        with settings.open("a") as stream:  # else Debian starts a server of its own on the usual port
            stream.write("\ncreate_main_cluster = false\n")
        _run([*apt, "install", "--no-install-recommends", "postgresql"], "apt-get install", env=quiet)
        return self._binaries()

    def _as_user(self, command: list[str]) -> list[str]:
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command] if _root() else command

    def launch(self) -> None:
        binaries = self._binaries()
        env = self.place.plain | {"LC_ALL": "C.UTF-8"}
        if not self.data.is_dir():
            self._initialise(binaries, env)
        # Every process of ours has ended; the number of one that was killed may linger as a zombie, which PostgreSQL
        # would take for a running server.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.place.postgres_port,
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.spawn(self._as_user([str(binaries / "postgres"), "-D", str(self.data), *options]), env)

    def _initialise(self, binaries: Path, env: dict[str, str]) -> None:
        folder = self.data.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.place.secret("postgres"))
        if _root():
            shutil.chown(folder, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
            if subprocess.run(self._as_user(["test", "-x", str(folder)]), env=env).returncode:
                raise StackError(
                    f"PostgreSQL runs as user postgres, who cannot enter {folder}. "
                    "Fix: set STACK_HOME to a folder that others may pass through, for example /var/lib/rd3-stack"
                )
        command = [str(binaries / "initdb"), "-D", str(unfinished), "-U", "postgres", f"--pwfile={password}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        _run(self._as_user(command), "initdb", env=env, cwd="/")
        password.unlink()
        unfinished.rename(self.data)

    def answers(self) -> bool:
        try:
            self._sql("SELECT 1")
        except StackError:
            return False
        return True

    def _sql(self, script: str) -> None:
        env = self.place.plain | {"PGPASSWORD": self.place.secret("postgres"), "PGCONNECT_TIMEOUT": "5"}
        command = [str(self._binaries() / "psql"), "-h", "127.0.0.1", "-p", str(self.place.postgres_port)]
        command += ["-U", "postgres", "-d", "postgres", "-q", "-v", "ON_ERROR_STOP=1"]
        _run(command, "psql", env=env, input=script)

    def ready(self) -> None:
        """A role for MLflow that owns its two databases and nothing else."""
        password = self.place.secret("postgres-mlflow")
        no_role = "WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow')"
        script = [
            f"SELECT 'CREATE ROLE mlflow LOGIN' {no_role} \\gexec",
            f"ALTER ROLE mlflow PASSWORD '{password}';",
        ]
        for name in ("mlflow", "mlflow_auth"):
            missing = f"WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}')"
            script.append(f"SELECT 'CREATE DATABASE {name} OWNER mlflow' {missing} \\gexec")
        self._sql("\n".join(script))


def _root() -> bool:
    return os.geteuid() == 0


class S3(Part):
    """OpenStack Swift with its S3 service: four servers, configured by ``infra/s3/swift.sh``."""

    name = "s3"

    def __init__(self, place: Place):
        super().__init__(place)
        self.address = place.s3_uri
        self.ports = {place.s3_port + offset: "127.0.0.1" for offset in (0, 10, 11, 12)}

    def launch(self) -> None:
        home = self.place.s3_home
        venv = os.environ.get("S3_VENV") or str(home / "venv")
        # pip, which the script runs, needs to hear of proxies and registries.
        env = os.environ | self.place.s3 | {"S3_HOME": str(home), "S3_VENV": venv, "S3_PORT": str(self.place.s3_port)}
        script = Path(__file__).parents[1] / "s3" / "swift.sh"
        _run([str(script), "configure"], "swift.sh configure", env=env)
        for server in ("account", "container", "object", "proxy"):
            command = [f"{venv}/bin/swift-{server}-server", str(home / "etc" / f"{server}-server.conf")]
            self.spawn(command, self.place.plain | {"PYTHONPATH": str(script.parent)})

    def answers(self) -> bool:
        return get(f"{self.place.s3_uri}/healthcheck")[0] == 200


class Mlflow(Part):
    """The tracking server: runs in PostgreSQL, files in S3, a password for everybody."""

    name = "mlflow"
    give_up_after_s = 240.0  # two workers that import MLflow, on a busy machine

    def __init__(self, place: Place):
        super().__init__(place)
        self.address, self.ports = place.mlflow_uri, {place.mlflow_port: "127.0.0.1"}

    def launch(self) -> None:
        place, port = self.place, self.place.mlflow_port
        database = f"postgresql+psycopg2://mlflow@127.0.0.1:{place.postgres_port}"
        password = place.secret("postgres-mlflow")
        env = place.plain | place.s3
        env |= {
            # libpq finds the password there, so that no URI, command line or log has it.
            "PGPASSFILE": str(place.write_secret("pgpass", f"127.0.0.1:{place.postgres_port}:*:mlflow:{password}\n")),
            "MLFLOW_BACKEND_STORE_URI": f"{database}/mlflow",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": place.s3_uri,
            "MLFLOW_AUTH_CONFIG_PATH": str(place.write_secret("basic_auth.ini", _AUTH.format(database=database))),
            "MLFLOW_AUTH_ADMIN_PASSWORD": place.secret("mlflow-admin"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": place.secret("mlflow-flask"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "2", "--app-name", "basic-auth"]
        command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
        self.spawn(command, env)

    def answers(self) -> bool:
        return get(f"{self.place.mlflow_uri}/health")[0] == 200

    def ready(self) -> None:
        """The user that drivers and trials log in as; it may do what it likes with what it makes, and read the rest."""
        place, script = self.place, Path(__file__).parents[1] / "mlflow" / "account.py"
        env = place.plain | place.login | {"MLFLOW_AUTH_ADMIN_PASSWORD": place.secret("mlflow-admin")}
        _run([sys.executable, str(script)], "To make MLflow's user", env=env)


_AUTH = """[mlflow]
default_permission = READ
database_uri = {database}/mlflow_auth
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 30
"""


class RayNode(Part):
    """What head and worker share.  Each takes ten ports in a row for Ray's own services and fifty for its processes."""

    give_up_after_s = 120.0
    launches = 3  # Ray gives a node 30 s to join, which is too little on a busy machine, and has no setting for it
    ip: str
    first_service: int
    """Where its ports for services begin in :attr:`Place.ray_ports`."""
    first_process: int
    """Where its ports for processes begin there."""

    def __init__(self, place: Place):
        super().__init__(place)
        self.ports = dict.fromkeys(place.ray_ports[self.first_service : self.first_service + 9], self.ip)

    def launch(self) -> None:
        place, ports = self.place, self.place.ray_ports
        home = place.home / self.name
        home.mkdir(mode=0o700, exist_ok=True)
        scratch = place.ray_folder / self.name.removeprefix("ray-")
        shutil.rmtree(scratch, ignore_errors=True)  # sessions that have ended
        own = dict(zip(_SERVICES, ports[self.first_service + 2 :], strict=False))
        own |= {"min-worker-port": ports[self.first_process], "max-worker-port": ports[self.first_process + 49]}
        # No AWS_ variable: trials reach files through the tracking server, as an ordinary user of it.
        env = place.plain | place.login | place.ray_token | self.driver_env()
        env |= {"RD3_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        # Ports of metrics would be open on every interface, to everybody; two have no switch but a port that is none.
        env |= {"RAY_enable_metrics_collection": "0"}
        env |= {"AUTOSCALER_METRIC_PORT": "65536", "DASHBOARD_METRIC_PORT": "65536"}
        command = [shutil.which("ray", path=env["PATH"]) or "ray", "start", "--block", f"--node-ip-address={self.ip}"]
        command += ["--num-cpus=1", "--object-store-memory=200000000", "--disable-usage-stats"]
        command += [f"--temp-dir={scratch}", "--log-color=false"]
        command += [f"--{name}={port}" for name, port in own.items()]
        self.spawn([*command, *self.own_options()], env)

    def own_options(self) -> list[str]:
        """Options of ``ray start`` that only this kind of node has."""
        raise NotImplementedError

    def driver_env(self) -> dict[str, str]:
        """Variables that only the driver of a job needs, and the trials beside it do not."""
        return {}

    def answers(self) -> bool:
        """Whether the head's dashboard, which wants the token, knows this node as alive."""
        token = {"Authorization": f"Bearer {self.place.secret('ray-token')}"}
        status, body = get(f"{self.place.dashboard_uri}/nodes?view=summary", token)
        if status != 200:
            return False
        nodes = json.loads(body)["data"]["summary"]
        return any(node.get("ip") == self.ip and node["raylet"].get("state") == "ALIVE" for node in nodes)


_SERVICES = (
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
"""Options of ``ray start`` for the ports of a node's services, in the order of the ports."""


class RayHead(RayNode):
    """The head, with the Jobs API on its dashboard's port."""

    name, ip, first_service, first_process = "ray-head", HEAD_IP, 0, 60

    def __init__(self, place: Place):
        super().__init__(place)
        self.address = f"{place.ray_address}, {place.dashboard_uri}"

    def driver_env(self) -> dict[str, str]:
        lines = "".join(f"{name}={value}\n" for name, value in self.place.s3.items())
        return {"RD3_DRIVER_ENV": str(self.place.write_secret("driver.env", lines))}

    def own_options(self) -> list[str]:
        gcs, dashboard = self.place.ray_ports[:2]
        return ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]


class RayWorker(RayNode):
    """One worker; it belongs to the head that it joined, and ends with it."""

    name, ip, first_service, first_process = "ray-worker", WORKER_IP, 20, 110

    address = WORKER_IP

    def own_options(self) -> list[str]:
        return [f"--address={self.place.ray_address}"]


PARTS: tuple[type[Part], ...] = (Postgres, S3, Mlflow, RayHead, RayWorker)
