"""Why a Ray cluster cannot be joined, in one sentence; Ray itself waits for minutes, or tells its log."""

from __future__ import annotations

import re
import socket

from rd3.errors import RD3Error

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins: a fixed text and an empty SETTINGS frame.  The other side answers with its own."""
_SETTINGS = 4
_WAIT_S = 5.0


def check_address(address: str) -> None:
    """Raise :class:`RD3Error` unless something at ``address`` (``HOST:PORT``) speaks the HTTP/2 that Ray speaks.

    ``auto`` and other words for Ray to resolve are left to it.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT_S) as asked:
            asked.sendall(_HELLO)
            answer = asked.recv(9)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RD3Error(
            f"The Ray cluster at {address} does not answer: {reason}.", "start it, or give --address its head's address"
        ) from None
    if answer[3:4] != bytes([_SETTINGS]):
        raise RD3Error(
            f"What answers at {address} is not the head of a Ray cluster.",
            "give the head's own port (6379 unless it was started with another), not that of its dashboard",
        )


def not_joined(address: str, error: Exception) -> RD3Error:
    """What Ray's exception means for whoever wanted to join the cluster at ``address``."""
    from ray.exceptions import AuthenticationError

    text = str(error)
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if len(versions) == 2:
        theirs, ours = (f"Ray {ray} and Python {python}" for ray, python in versions)
        return RD3Error(
            f"The Ray cluster at {address} has {theirs}, this machine has {ours}.",
            "install the same versions on both: Ray moves code and data between them only if they are equal",
        )
    if isinstance(error, AuthenticationError):
        return RD3Error(f"There is no usable token for the Ray cluster at {address}: {_sentence(text)}.", _TOKEN)
    if "Failed to connect to Ray cluster" in text:  # it answered a moment ago
        return RD3Error(f"The Ray cluster at {address} is there, but does not let us in.", _TOKEN)
    return RD3Error(
        f"Cannot join the Ray cluster at {address}: {first_line(error)}", "check the address with `ray status`"
    )


_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"


def first_line(error: Exception) -> str:
    """The beginning of what may be a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".")
