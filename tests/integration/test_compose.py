"""The compose file against docker-compose itself: it is taken, a mistake is caught, a missing secret is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

FILE = Path(__file__).parents[2] / "infra" / "compose.yaml"
EXAMPLE = FILE.with_name(".env.example").read_text()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The example filled in."""
    lines = [f"{line}value{number}" if line.endswith("=") else line for number, line in enumerate(EXAMPLE.splitlines())]
    path = tmp_path / "env"
    path.write_text("\n".join(lines))
    return path


def config(file: Path, secrets: Path) -> subprocess.CompletedProcess[str]:
    """What docker-compose makes of a file."""
    program = shutil.which("docker-compose")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("docker-compose is not installed")
    command = [program, "--file", str(file), "--env-file", str(secrets), "config"]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)


def test_the_file_is_taken_and_closed_to_others(secrets):
    read = config(FILE, secrets)
    assert read.returncode == 0, read.stderr
    whole = yaml.safe_load(read.stdout)
    services = whole["services"]
    assert {name for service in services.values() for name in service["networks"]} == set(whole["networks"])
    assert set(services) == {"postgres", "s3", "mlflow", "setup", "head", "worker"}
    for name, service in services.items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "healthcheck" in service or name == "setup"
    worker = services["worker"]
    assert not [variable for variable in worker["environment"] if variable.startswith(("AWS_", "POSTGRES", "PG"))]
    assert list(worker["networks"]) == ["cluster"]
    assert {name for name in services if "cluster" in services[name]["networks"]} == {"mlflow", "head", "worker"}


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("    healthcheck:", "    health_check:", "health_check"),
        ("condition: service_healthy", "condition: service_healty", "depends_on"),
        ("cap_drop: [ALL]", "cap_drop: ALL", "cap_drop"),
        ('ports: ["127.0.0.1:5000:5000"]', 'ports: ["127.0.0.1:5000:mlflow"]', "ports"),
    ],
)
def test_a_mistake_is_caught(tmp_path, secrets, good, bad, said):
    text = FILE.read_text()
    assert good in text
    spoiled = tmp_path / "compose.yaml"
    spoiled.write_text(text.replace(good, bad))
    read = config(spoiled, secrets)
    assert read.returncode != 0
    assert said in read.stderr


@pytest.mark.parametrize("name", [line[:-1] for line in EXAMPLE.splitlines() if line.endswith("=")])
def test_a_missing_secret_is_named(secrets, name):
    secrets.write_text("\n".join(line for line in secrets.read_text().splitlines() if not line.startswith(f"{name}=")))
    read = config(FILE, secrets)
    assert read.returncode != 0
    assert "fill in infra/.env" in read.stderr
