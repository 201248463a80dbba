"""The stack's own code without its servers: what its environment says, and answers that are none."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

STACK = Path(__file__).parents[2] / "infra" / "stack"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """``place`` and ``parts``, which are imported by these names."""
    monkeypatch.syspath_prepend(STACK)
    yield importlib.import_module("place"), importlib.import_module("parts")
    for name in ("place", "processes", "parts"):
        del sys.modules[name]


@pytest.mark.parametrize("port", ["http", "0", "-1", "65400", "15000.0"])
def test_a_port_that_is_none_is_one_sentence(modules, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _parts = modules
    monkeypatch.setenv("STACK_PORT", port)
    with pytest.raises(place.StackError, match=f"STACK_PORT is '{port}'. Fix: set it to the first of 200 free ports"):
        place.Place.from_environment()


@pytest.mark.parametrize("port", ["", "65336"])
def test_all_ports_of_a_stack_exist(modules, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, _parts = modules
    monkeypatch.setenv("STACK_PORT", port)
    assert place.Place.from_environment().ray_ports[-1] == int(port or 15000) + 199


@pytest.mark.parametrize("said", [b"220 mail ready\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
def test_what_is_no_answer_is_none(modules, said: bytes) -> None:
    """A part that dies while it answers ended ``start`` with a traceback."""
    _place, parts = modules
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as caller:
                caller.recv(1000)
                caller.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        assert parts.get(f"http://127.0.0.1:{listener.getsockname()[1]}/health") == (0, b"")
        thread.join()


def test_what_mlflow_says_of_its_user_is_shown(modules, tmp_path: Path) -> None:
    place, parts = modules

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"x" + "ü".encode() * 200)

        do_POST = do_PATCH = do_GET

        def log_message(self, *_words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = place.Place(tmp_path / "stack", server.server_address[1])
        here.secrets.mkdir(parents=True)
        with pytest.raises(place.StackError, match="does not let its user rd3 in \\(400\\): xü"):
            parts.Mlflow(here).ready()
        server.shutdown()
