"""Which Host and Origin a request may carry, so that no web page reaches a server of ours.

A page on another site sends its own Origin. A page whose name was made to point at this machine
(DNS rebinding) sends its own name as Host. Neither is a name of this server.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tinkersmith.errors import UserError, reason_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    Refuse = Callable[[Scope, str, int], ASGIApp]  # request, sentence, status -> the answer

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(.*)", re.IGNORECASE)


def allowed_hosts(bound: str, names: Iterable[str]) -> frozenset[str]:
    """The names under which requests may come: loopback, the bound address, and `names`.

    Raises:
        UserError: a name is not one host's name without scheme and port.
    """
    hosts = set(LOOPBACK_NAMES)
    for name in names:
        host = _host(_bracketed(name))
        if host is None or host.endswith(".") or _HOST.fullmatch(f"{_bracketed(name)}:1") is None:
            raise UserError(
                f"--allow-host is {name!r}; it must be one name or address as clients write it, "
                "without scheme, port and final dot, such as server.example or 192.168.1.5."
            )
        hosts.add(host)
    if not is_wildcard(bound):
        hosts.add(_host(_bracketed(bound)) or bound)
    return frozenset(hosts)


def is_wildcard(address: str) -> bool:
    """Whether an address to listen on stands for all addresses of the machine."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return address == ""


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: there is no such address, or the port is taken or out of range.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be from 0 (any free) to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host is {host!r}, which is no address of this machine.") from None
    # With the protocol named, asyncio switches Nagle's algorithm off: it costs 40 ms an answer.
    listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host is {host!r}, which is no address of this machine.") from None
        reason = reason_of(error)
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port."
        ) from None
    return listener


def address_in_url(host: str, port: int) -> str:
    """`host:port` as a URL has it."""
    return f"{_bracketed(host)}:{port}"


class HostGuard:
    """Refuses every request whose Host, or Origin if it has one, is not a name of this server.

    With `any_own_address`, the address at which the connection arrived is a name, too: a server
    that listens on 0.0.0.0 has no other. `server` is what the sentences call it.
    """

    def __init__(
        self,
        app: "ASGIApp",
        hosts: frozenset[str],
        refuse: "Refuse",
        *,
        any_own_address: bool,
        server: str = "engine",
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.refuse = refuse
        self.any_own_address = any_own_address
        self.server = server

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and (sentence := self._objection(scope)) is not None:
            await self.refuse(scope, sentence, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _objection(self, scope: "Scope") -> str | None:
        """Why the request is refused; None: it may pass."""
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(sent) != 1:
            return (
                "the request has no Host header; send the one that belongs to the address, such as "
                "Host: 127.0.0.1."
            )
        if (sentence := self._refusal("Host", sent[0], _host(sent[0]), scope)) is not None:
            return sentence
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value.decode("latin-1")
                match = _ORIGIN.fullmatch(origin)
                host = _host(match[1]) if match else None
                if (sentence := self._refusal("Origin", origin, host, scope)) is not None:
                    return sentence
        return None

    def _refusal(self, header: str, value: str, host: str | None, scope: "Scope") -> str | None:
        if host is not None and (host in self.hosts or self._is_own_address(host, scope)):
            return None
        advice = (
            f"start the {self.server} with --allow-host {host}"
            if host is not None and not host.endswith(".")
            else "name the host as it is, without user and final dot"
        )
        return (
            f"the {header} {value[:200]!r} is not a name of this {self.server}; use one of its "
            f"addresses, such as 127.0.0.1 or localhost, or, if you trust that name, {advice}."
        )

    def _is_own_address(self, host: str, scope: "Scope") -> bool:
        server = scope.get("server")
        return self.any_own_address and server is not None and host == _address(server[0])


def _host(text: str) -> str | None:
    """The host of `host[:port]`, in lower case or as a short address; None: it is neither."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    host = match[1].lower()
    if not host.startswith("["):
        return host
    try:
        return str(ipaddress.IPv6Address(host[1:-1]))
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    """An address of IP version 6 as it is written in a URL; anything else as it is."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _address(text: str) -> str:
    """An address in its short form; one of version 4 that is written in version 6, as version 4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
