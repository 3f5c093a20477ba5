"""Tells the sender of a job that it is done: one signed POST, tried again after longer and longer pauses.

A client of the service chooses the address, and the service may be able to reach private networks. So the check is made
on the address that a connection is really made to, after the name was resolved. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.errors import ConfigurationError, NamesUnavailable, WebhookRefused

logger = logging.getLogger("ray.serve")

SIGNATURE_HEADER = "X-Sound-Sentry-Signature"
JOB_HEADER = "X-Sound-Sentry-Job"

TIMEOUT_SECONDS = 10.0
"""How long a receiver may take to answer, including the resolution of its name and the connection."""

RESOLVER_THREADS = 16
"""How many names are resolved at a time. A resolution that hangs keeps its thread for longer than its time-out."""

MAX_URL_LENGTH = 2_000
MAX_HOST_LENGTH = 253
"""The length of the longest name that DNS allows."""

MIN_SECRET_BYTES = 16
SUCCESS = range(200, 300)

SPARE_SECONDS = 3_600.0
"""How much longer than all its pauses together a webhook may be pending, because others to its host come before it."""

CARRIES_IPV4 = tuple(IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
"""Networks whose addresses contain an IPv4 address that a gateway extracts (RFC 6052, 8215, 3056, 4380)."""

NO_ADDRESS = (
    f"webhook: send an http or https address of at most {MAX_URL_LENGTH} characters, without a user name and without "
    "unprintable characters."
)

NOT_REACHED = (
    "webhook: the host of its address is unknown, or in a private network, where this service sends nothing. Check the "
    "address."
)
"""The same sentence for both, so that nobody can find out which names of a private network exist."""

NO_NAMES = "webhook: the name in its address cannot be looked up at present. Try again in a while."

PASSING = (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)
"""The errors of a resolver that say nothing about the name."""

Network = IPv4Network | IPv6Network


class ForbiddenAddressError(OSError):
    """A connection to an address that webhooks may not use."""


class Resolver(AbstractResolver):
    """Resolves names in threads of its own. A client chooses the names, and one may take minutes: in the threads that
    asyncio shares, a few of them would hold up the database and all other blocking work of the process."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, "webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises OSError, UnicodeError, or TimeoutError, also if all threads are stuck."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host, port, family)

    async def close(self) -> None:
        """Let the threads end when they are done."""
        self._threads.shutdown(wait=False)


class Webhooks:
    """Sends webhooks, signed with `secret`. They may reach public addresses and the networks in `allowed`."""

    def __init__(self, secret: bytes, allowed: Sequence[Network]) -> None:
        self._secret = secret
        self._allowed = allowed
        self._resolver = Resolver()

    async def check(self, url: str) -> None:
        """Raises WebhookRefused if a webhook to `url` could never be sent, or NamesUnavailable if that is not known."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise WebhookRefused(NO_ADDRESS) from error
        host = parts.hostname or ""
        is_web = parts.scheme in ("http", "https") and host and parts.username is None and port != 0
        if not is_web or not url.isprintable() or len(url) > MAX_URL_LENGTH or len(host) > MAX_HOST_LENGTH:
            raise WebhookRefused(NO_ADDRESS)
        try:
            found = await self._resolver.resolve(host, port or 0)
        except (OSError, UnicodeError) as error:
            if isinstance(error, TimeoutError) or (isinstance(error, socket.gaierror) and error.errno in PASSING):
                raise NamesUnavailable(NO_NAMES) from error
            raise WebhookRefused(NOT_REACHED) from error
        if not any(self._may_reach(address["host"]) for address in found):
            raise WebhookRefused(NOT_REACHED)

    async def send(self, url: str, job_id: str, body: bytes) -> str | None:
        """POST `body` once. Returns None if the receiver answered with success, else what went wrong."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "Sound-Sentry",
            JOB_HEADER: job_id,
            SIGNATURE_HEADER: signature(self._secret, body),
        }
        # A new connection each time, because a kept one could lead to an old address of the name.
        connector = aiohttp.TCPConnector(
            resolver=self._resolver, socket_factory=self._open_socket, use_dns_cache=False, force_close=True
        )
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        cookies = aiohttp.DummyCookieJar()
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=cookies) as session,
                session.post(url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return None if response.status in SUCCESS else f"it answered {response.status}"
        except TimeoutError:
            return f"it did not answer within {TIMEOUT_SECONDS:g} seconds"
        except aiohttp.ClientConnectorError as error:
            forbidden = isinstance(error.os_error, ForbiddenAddressError)
            return "its address is in a private network" if forbidden else "it cannot be reached"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"the connection failed ({type(error).__name__})"

    def _open_socket(self, address: Any) -> socket.socket:
        """A socket for one resolved address of a name. Raises ForbiddenAddressError before it is used."""
        family, kind, protocol, _, where = address
        if not self._may_reach(where[0]):
            raise ForbiddenAddressError("a webhook may not reach this address")
        return socket.socket(family, kind, protocol)

    def _may_reach(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return is_public(ip) or any(ip in network for network in self._allowed)


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    """The addresses of a name, in digits. Blocks until the resolver answers."""
    return [
        ResolveResult(
            hostname=host,
            host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
            port=port,
            family=found,
            proto=protocol,
            flags=socket.AI_NUMERICHOST,
        )
        for found, _, protocol, _, address in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    ]


def read_secret(path: Path) -> bytes:
    """The secret in a file, without white space around it. Raises ConfigurationError if it is missing or too short."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"jobs.webhook_secret_file: {path.name} cannot be read") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"jobs.webhook_secret_file: {path.name} holds less than {MIN_SECRET_BYTES} bytes; make a secret with "
            "`openssl rand -hex 32`"
        )
    return secret


def host_of(url: str) -> str:
    """The host that a webhook goes to."""
    return urlsplit(url).hostname or ""


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    """Whether an address is public: not private, loopback, link-local, site-local, multicast or
    reserved."""
    if isinstance(ip, IPv6Address) and (ip.is_site_local or any(ip in network for network in CARRIES_IPV4)):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def signature(secret: bytes, body: bytes) -> str:
    """The value of X-Sound-Sentry-Signature: `sha256=` and the HMAC of the body in hexadecimal digits."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def pause_seconds(attempts: int, first_seconds: float) -> float:
    """How long to wait after this number of attempts: four times longer after each."""
    return first_seconds * 4.0 ** (attempts - 1)


def patience_seconds(attempts: int, first_seconds: float) -> float:
    """How long a webhook with this number of attempts may be pending before it is given up."""
    return sum(pause_seconds(attempt, first_seconds) for attempt in range(1, attempts)) + SPARE_SECONDS
