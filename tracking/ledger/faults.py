"""What a failure of a server means: one sentence, one fix, and whether waiting can help.

Faults are rows of tables: here those of connections, in :mod:`tracking.ledger.s3_faults` those of S3 servers and in
:mod:`tracking.runs.faults` those of MLflow.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from rd3.errors import RD3Error

E = TypeVar("E", bound=RD3Error)


@dataclass(frozen=True)
class Fault:
    """A cause of failures; the texts are templates in a table, and complete after :meth:`about`."""

    message: str
    fix: str
    waits: bool = False
    """Whether waiting can help: the same request may succeed later without a change by the user."""

    def about(self, **facts: object) -> Fault:
        """With the templates filled in."""
        return Fault(self.message.format(**facts), self.fix.format(**facts), self.waits)

    def error(self, permanent: type[E], temporary: type[E]) -> E:
        """The exception: ``temporary`` if waiting can help."""
        return (temporary if self.waits else permanent)(self.message, self.fix)


@dataclass(frozen=True)
class Server:
    """A server as messages name it, with the variables that configure access to it."""

    name: str
    url: str
    address: str
    """Variable with its address."""
    certificates: str
    """Variable with the file of trusted certificates."""


def fault_in(text: str, table: Mapping[str, Fault]) -> Fault | None:
    """The first fault of a table whose pattern is in a text."""
    return next((fault for pattern, fault in table.items() if re.search(pattern, text)), None)


_UNQUOTED_LOGIN = re.compile(r"[^/?#@:]*:(?!\d+(?:[/?#]|$))[^@]*@")
"""User, password and ``@``, where the password has characters that end the authority of a URI, as AWS's secret keys may
have (``/``); a port before a path is none.  boto's and SQLAlchemy's readers take them, :mod:`urllib` does not."""
_SECRET_NAME = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|secret_?key|token|api_?key|access_?key|credentials?|signature)$"
    r"|^(?:pass|sig)$",
    re.IGNORECASE,
)
"""Names of parameters with secrets, such as ``sslpassword``; ``passfile`` and ``sslkey`` are names of files."""
_SECRET_WITHIN = re.compile(r"(?:password|pwd)\s*=", re.IGNORECASE)
"""A password in the value of a parameter, such as ``odbc_connect``."""


def _login(rest: str) -> str:
    """User name, password and ``@`` at the beginning of what follows ``://`` in a URI; empty without ``@``."""
    authority = rest.partition("/")[0]
    if "@" in authority:
        return authority[: authority.rindex("@") + 1]
    found = _UNQUOTED_LOGIN.match(rest)
    return found[0] if found else ""


def has_password(uri: str) -> bool:
    """Whether the URI has a password (of S3: a secret key) before the host or bucket, or one in its query.

    Databases take ``?password=`` as well: every driver receives the query's parameters.
    """
    rest = uri.partition("://")[2]
    return ":" in _login(rest) or any(map(_is_secret, _query(rest)))


def without_password(uri: str) -> str:
    """The URI without user name and password, and without those in its query, for messages."""
    scheme, colon, rest = uri.partition("://")
    shown = rest[len(_login(rest)) :]
    if any(map(_is_secret, _query(shown))):
        place, _, query = shown.partition("?")
        _, fragment, page = query.partition("#")
        kept = "&".join(part for part in _query(shown) if not _is_secret(part))
        shown = f"{place}{'?' if kept else ''}{kept}{fragment}{page}"
    return f"{scheme}{colon}{shown}"


def _query(rest: str) -> list[str]:
    """The parameters ``name=value`` of a URI, as they are written."""
    return re.split("[&;]", rest.partition("?")[2].partition("#")[0])


def _is_secret(parameter: str) -> bool:
    name, _, value = (unquote(part) for part in parameter.partition("="))
    return bool(value) and bool(_SECRET_NAME.search(name) or _SECRET_WITHIN.search(value))


_CONNECTIONS = {
    r"certificate has expired": Fault("{name} has a TLS certificate that has expired.", "renew it on that server"),
    r"[Hh]ostname mismatch|IP address mismatch|certificate is not valid for|doesn't match": Fault(
        "{name} has a TLS certificate for another host name.", "use the host name of the certificate in {address}"
    ),
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": Fault(
        "{name} has a TLS certificate that is not trusted here: it is self-signed, or its authority is unknown.",
        "set {certificates} to a file with the certificate of its authority (PEM)",
    ),
    r"WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER_FAILURE|record layer failure|HTTP_REQUEST": Fault(
        "{name} does not use TLS at that port.", "write http:// instead of https:// in {address}"
    ),
    r"HTTP request (?:was sent )?to (?:an )?HTTPS (?:server|port)": Fault(
        "{name} uses TLS at that port.", "write https:// instead of http:// in {address}"
    ),
}
"""Patterns in the texts of errors and responses."""
_PROXY_LOOPBACK = Fault(
    "{name} is on this machine, but requests to it are sent to the proxy {proxy} (HTTP_PROXY, HTTPS_PROXY or "
    "ALL_PROXY).",
    "add {host} to NO_PROXY",
)
_PROXY_PRIVATE = Fault(
    "{name} does not respond through the proxy {proxy}.",
    "add {host} to NO_PROXY if this machine reaches it directly, or correct the proxy",
    waits=True,
)
_PROXY_PUBLIC = replace(_PROXY_PRIVATE, fix="correct HTTP_PROXY and HTTPS_PROXY, or unset them")


def connection_fault(server: Server, text: str) -> Fault | None:
    """The fault behind a failed connection or an unexpected response, if TLS or a proxy is the cause."""
    fault = fault_in(text, _CONNECTIONS)
    return fault.about(**vars(server)) if fault else proxy_fault(server)


def proxy_fault(server: Server) -> Fault | None:
    """The fault of a server that is asked through a proxy; None if there is no proxy between."""
    proxy, host = proxy_of(server.url), urlsplit(server.url).hostname or ""
    if not proxy:
        return None
    fault = _PROXY_LOOPBACK if is_loopback(host) else _PROXY_PRIVATE if _is_private(host) else _PROXY_PUBLIC
    return fault.about(name=server.name, proxy=proxy, host=host)


def proxy_of(url: str) -> str:
    """The proxy for requests to ``url`` (without its password), from HTTP_PROXY and NO_PROXY; empty if none is used."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all", "")
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    return proxy.rpartition("@")[2].rpartition("://")[2].rstrip("/")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a host is a name of the machine that asks."""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _is_private(host: str) -> bool:
    """Whether a host is in the user's own network: a private address, a bare name, or a usual internal domain."""
    address = _address(host)
    if address is not None:
        return address.is_private
    return "." not in host or host.endswith((".local", ".internal", ".lan", ".localdomain"))
