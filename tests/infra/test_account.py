"""The script that makes MLflow's user, against a server that knows users and passwords."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "mlflow" / "account.py"


@pytest.fixture
def server():
    """(address, passwords by user) of a server that answers as MLflow's does."""
    passwords = {"admin": "of the admin"}

    class Answers(BaseHTTPRequestHandler):
        def answer(self, create: bool = False, update: bool = False) -> None:
            user, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            status = 200 if passwords.get(user) == password else 401
            if status == 200 and (create or update):
                known = body["username"] in passwords
                status = 200 if user == "admin" and known == update else 400
                if status == 200:
                    passwords[body["username"]] = body["password"]
            self.send_response(status)
            self.end_headers()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer(create=self.path.endswith("/users/create"))

        def do_PATCH(self) -> None:
            self.answer(update=self.path.endswith("/users/update-password"))

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", passwords
        running.shutdown()


def test_the_user_gets_the_password_that_is_asked_for_today(server) -> None:
    uri, passwords = server
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "rd3", "MLFLOW_AUTH_ADMIN_PASSWORD": "of the admin"}
    for password in ("first", "first", "second"):
        subprocess.run([sys.executable, SCRIPT], env=env | {"MLFLOW_TRACKING_PASSWORD": password}, check=True)
        assert passwords["rd3"] == password
    env["MLFLOW_AUTH_ADMIN_PASSWORD"] = "wrong"
    done = subprocess.run(
        [sys.executable, SCRIPT], env=env | {"MLFLOW_TRACKING_PASSWORD": "third"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "does not let its user rd3 in (401)" in done.stderr


def test_a_server_that_is_not_there_is_one_sentence(closed_port: int) -> None:
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed_port}", "MLFLOW_TRACKING_USERNAME": "rd3"}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=env | {"MLFLOW_TRACKING_PASSWORD": "first"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("MLflow does not respond: ") and "Traceback" not in done.stderr
