"""Middleware for Swift: its account, container and object servers answer only callers that know a secret.

These servers trust anyone who can connect to them, and every local user can connect to a port on loopback.  ``send``
goes into the pipeline of the proxy, ``require`` into those of the other servers, which call each other; both add the
secret to every request that their process sends to such a server.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

from swift.common.bufferedhttp import BufferedHTTPConnection

HEADER = "X-Rd3-Backend-Secret"
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


_putrequest = BufferedHTTPConnection.putrequest


def _add_to_requests(secret: str) -> None:
    """Send the secret with every request of this process to a server; Swift loads its pipeline several times."""

    def putrequest(connection: BufferedHTTPConnection, *args: Any, **options: Any) -> None:
        _putrequest(connection, *args, **options)
        connection.putheader(HEADER, secret)

    BufferedHTTPConnection.putrequest = putrequest


def send(_global_conf: dict[str, str], *, secret: str, **_local: str) -> Callable[[App], App]:
    """Paste filter that changes nothing about the requests that come in."""
    _add_to_requests(secret)
    return lambda app: app


def require(_global_conf: dict[str, str], *, secret: str, **_local: str) -> Callable[[App], App]:
    """Paste filter that answers requests without the secret with 403."""
    _add_to_requests(secret)
    variable = "HTTP_" + HEADER.upper().replace("-", "_")

    def checked(app: App) -> App:
        def answer(env: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if hmac.compare_digest(env.get(variable, "").encode(), secret.encode()):
                return app(env, start_response)
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]

        return answer

    return checked
