"""One attempt to deliver one event: an HTTP request, signed as Standard Webhooks has it."""

import base64
import hashlib
import hmac
import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote

import httpcore
import httpx

from swapmeet.errors import WebhookFailed, WebhookRefused
from swapmeet.webhooks.addresses import GuardedNetwork

SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix
LONGEST_URL = 2000
LONGEST_LINE = 200
"""Characters of an answer that are kept, where it is a refusal."""
MOST_READ = 2048
"""Bytes of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: a URL without user and password, those apart as `user:password`, and the secrets to sign with."""

    url: str
    credentials: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends events, each over a connection of its own. No proxy is used and no redirect followed.

    Args:
        private: whether private addresses may be reached.
        step_seconds: the longest that connecting, and each read and write, may take.
        seconds: the longest that all of an attempt may take, once the host's name is resolved.
        tls: how to verify servers; as usual, where it is None.
    """

    private: bool = False
    step_seconds: float = 10.0
    seconds: float = 15.0
    tls: ssl.SSLContext | None = None

    def send(self, target: Target, message_id: str, body: str) -> int:
        """The status that the URL answered with, from 100 to 599.

        Raises:
            WebhookFailed: it did not answer, or with an error. The message does not tell the URL.
            WebhookRefused: its address is private.
        """
        status, line = self._exchange(target, message_id, body)
        if 200 <= status < 300:
            return status
        if 300 <= status < 400:
            raise WebhookFailed(f"answered {status}: redirects are not followed, so give the URL that it leads to")
        raise WebhookFailed(f"answered {status}" + (f": {line}" if line else ""))

    def status_of(self, target: Target, message_id: str, body: str) -> int:
        """The status that the URL answered with, whatever it is.

        Raises:
            WebhookFailed: it did not answer.
            WebhookRefused: its address is private.
        """
        return self._exchange(target, message_id, body)[0]

    def _exchange(self, target: Target, message_id: str, body: str) -> tuple[int, str]:
        url = httpx.URL(target.url)
        network = GuardedNetwork(self.private, time.monotonic() + self.seconds)
        timeouts = dict.fromkeys(("connect", "read", "write"), self.step_seconds)
        tls = self.tls or _usual_tls()
        try:
            with (
                httpcore.ConnectionPool(tls, network_backend=network) as pool,
                pool.stream(
                    "POST",
                    httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=[("host", url.netloc.decode("ascii")), *_headers(target, message_id, body).items()],
                    content=body.encode(),
                    extensions={"timeout": timeouts},
                ) as response,
            ):
                return response.status, "" if response.status < 400 else _first_line(response)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise WebhookFailed(_reason(error)) from None


@cache
def _usual_tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def signature(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """`v1,` and the HMAC-SHA256 of what is signed, in base64."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def checked_url(text: str) -> Target:
    """Where a webhook's URL leads, without secrets to sign with.

    Raises:
        WebhookRefused: it is no URL of an HTTP server; the message does not repeat it.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        raise WebhookRefused("The URL of the webhook can not be read. Write https://HOST/PATH.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise WebhookRefused("The URL of a webhook begins with https:// (or http://) and a host. Correct it.")
    if url.port == 0 or (url.port or 1) > 65535:
        raise WebhookRefused("The URL's port is not between 1 and 65535. Correct it.")
    plain = str(url.copy_with(userinfo=b"", fragment=None))
    if len(plain) > LONGEST_URL:
        raise WebhookRefused(f"The URL has more than {LONGEST_URL} characters. Give a shorter one.")
    return Target(plain, unquote(url.userinfo.decode("ascii")))


def _headers(target: Target, message_id: str, body: str) -> dict[str, str]:
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "swapmeet-webhooks/1",
        "connection": "close",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(each, message_id, timestamp, body) for each in target.secrets),
    }
    if target.credentials:
        headers["authorization"] = "Basic " + base64.b64encode(target.credentials.encode()).decode()
    return headers


def _first_line(response: httpcore.Response) -> str:
    """The beginning of a refusal's text, so that its owner knows what his server said."""
    read = b""
    try:
        for piece in response.iter_stream():
            read += piece
            if len(read) >= MOST_READ:
                break
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        pass  # the status says enough
    lines = read[:MOST_READ].decode(errors="replace").strip().splitlines()
    shown = "".join(each if each.isprintable() else " " for each in (lines[0] if lines else ""))
    return shown[:LONGEST_LINE]


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.ConnectTimeout | httpcore.ConnectError):
        return f"can not be connected to ({str(error) or 'it does not answer'})"
    if isinstance(error, httpcore.TimeoutException):
        return "did not answer in time"
    return "broke off without an answer in HTTP"
