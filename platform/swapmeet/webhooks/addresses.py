"""Which addresses the platform connects to on behalf of tenants, and connections to no others.

A name is resolved once, and the connection goes to an address that was looked at: nobody can answer with a public
address to the check and with a private one to the connection.
"""

import socket
import ssl
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore

from swapmeet.errors import WebhookRefused

NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet at large; one that leads to another is judged by that."""
    found = ip_address(address.partition("%")[0])
    return all(_global(each) for each in _inside(found) or [found])


def resolve(host: str, port: int | None, *, private: bool) -> list[str]:
    """The addresses of a host that may be connected to.

    Args:
        host: a name or an address.
        port: where to.
        private: allow any address.

    Raises:
        OSError: the name has no address.
        WebhookRefused: all of its addresses are private.
    """
    found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [each for each in dict.fromkeys(found) if private or is_public(each)]
    if not allowed:
        raise WebhookRefused(
            f"{host} is at a private address, and webhooks reach public ones only. Give another URL; the operator may"
            " allow private addresses (SWAPMEET_WEBHOOK_PRIVATE=true)."
        )
    return allowed


class GuardedNetwork(httpcore.NetworkBackend):
    """Connections to allowed addresses only, all of which end at a deadline.

    Args:
        private: allow any address.
        deadline: on the monotonic clock, in seconds.
    """

    def __init__(self, private: bool, deadline: float) -> None:
        self._private = private
        self._deadline = deadline
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first of the host's allowed addresses that answers."""
        try:
            addresses = resolve(host, port, private=self._private)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the host's name has no address") from error
        for address in addresses[:-1]:
            try:
                return self._connect(address, port, timeout, local_address, socket_options)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                continue
        return self._connect(addresses[-1], port, timeout, local_address, socket_options)

    def _connect(self, address: str, port: int, timeout: float | None, *more: Any) -> httpcore.NetworkStream:
        within = _within(timeout, self._deadline)
        return _Stream(self._network.connect_tcp(address, port, within, *more), self._deadline)


class _Stream(httpcore.NetworkStream):
    """A stream whose every step ends by the deadline: a peer that sends a byte now and then can not hold it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _within(timeout, self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _within(timeout, self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        within = _within(timeout, self._deadline)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, within), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _within(timeout: float | None, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for the whole attempt is over")
    return left if timeout is None else min(timeout, left)


def _global(address: IPv4Address | IPv6Address) -> bool:
    site = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or site)


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The IPv4 addresses that an IPv6 one leads to: mapped, or through a tunnel or translator."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
