"""Webhooks reach no private address, however it is written or resolved, and the platform's key is kept well."""

import datetime as dt
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swapmeet.errors import SecretKeyWrong, WebhookFailed, WebhookRefused
from swapmeet.secret_key import SecretKey, load_secret_key
from swapmeet.settings import load_settings
from swapmeet.webhooks import Sender
from swapmeet.webhooks.addresses import is_public
from swapmeet.webhooks.sender import Target, checked_url

PRIVATE = """
127.0.0.1 127.8.9.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.1 198.18.0.1 224.0.0.1
255.255.255.255 240.0.0.1 203.0.113.5 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12:3456::1 fec0::1 ff02::1 2001:db8::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 2002:7f00:1::
2002:a9fe:a9fe:: 2001:0:7f00:1::
""".split()  # noqa: SIM905 - a line for each would be two screens


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known_in_every_dress(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]
)
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


HOSTS = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "0x7f.1",
    "127.1",
    "0",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::]",
    "017700000001",
]


@pytest.mark.parametrize("host", HOSTS)
def test_no_way_to_write_this_machine_gets_there(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        port = listening.getsockname()[1]
        with pytest.raises((WebhookRefused, WebhookFailed)) as caught:
            Sender(step_seconds=1).send(checked_url(f"http://{host}:{port}/path?token=hush"), "wh_1", "{}")
        assert "hush" not in str(caught.value)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_name_that_answers_otherwise_the_second_time_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver says a public address to whoever asks first, and loopback from then on."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *more, **options)
        asked.append(host)
        return real("198.41.0.4" if len(asked) == 1 else "127.0.0.1", port, *more, **options)

    connected = []

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        connected.append(address[0])
        raise ConnectionRefusedError("closed")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(WebhookFailed, match="can not be connected to"):
        Sender().send(Target("http://rebind.example/"), "wh_1", "{}")
    assert (asked, connected) == (["rebind.example"], ["198.41.0.4"])
    with pytest.raises(WebhookRefused, match="private address"):
        Sender().send(Target("http://rebind.example/"), "wh_1", "{}")
    assert connected == ["198.41.0.4"]


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://example.com", "file:///etc/passwd", "http://", "https://:443/", "http://a:99999/",
     "http://[::1", "gopher://x", "javascript:alert(1)", "http://a\nb/", "http://a:0/", "http:///x", "//example.com/x",
     "http://ex\x00ample.com/", "https://" + "a" * 2000 + ".com", "https://example.com/" + "é" * 700],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(WebhookRefused) as caught:
        checked_url(url.replace("//", "//ana:hunter2@", 1))
    assert "hunter2" not in str(caught.value)


def test_a_url_is_kept_apart_from_its_password() -> None:
    target = checked_url("https://ana%40x:p%3Ass@bücher.example:8443/Pfad/ä?q=a%20b#part")
    assert target.url == "https://xn--bcher-kva.example:8443/Pfad/%C3%A4?q=a%20b"
    assert target.credentials == "ana@x:p:ss"
    assert "p:ss" not in repr(target)


def certificate(name: str, folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    at = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(at).not_valid_after(at + dt.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    made = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def test_servers_are_verified_by_name_although_connected_to_by_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate("hooks.example", tmp_path)
    hosts: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hosts.append(self.headers["host"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **options: real("127.0.0.1" if str(host).endswith(".example") else host, *more, **options),
    )
    port = server.server_address[1]
    trusting = Sender(private=True, tls=ssl.create_default_context(cafile=cert))
    try:
        assert trusting.send(Target(f"https://hooks.example:{port}/x"), "wh_1", "{}") == 200
        assert hosts == [f"hooks.example:{port}"]
        for sender, host in ((trusting, "other.example"), (Sender(private=True), "hooks.example")):
            with pytest.raises(WebhookFailed, match="certificate"):
                sender.send(Target(f"https://{host}:{port}/x"), "wh_1", "{}")
        assert len(hosts) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_platforms_key_is_made_once_and_private(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home")
    made: list[SecretKey] = []
    threads = [threading.Thread(target=lambda: made.append(load_secret_key(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = made[0].seal("whsec_x")
    assert b"whsec" not in sealed
    assert [key.open(sealed) for key in made] == ["whsec_x"] * 8
    path = tmp_path / "home" / "secret.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret.key"]


def test_a_key_can_be_given_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    monkeypatch.setenv("SWAPMEET_SECRET_KEY", f"{new}, {old}")
    key = load_secret_key(load_settings(home=tmp_path))
    assert not list(tmp_path.iterdir())
    assert key.open(SecretKey(old).seal("x")) == "x"
    assert SecretKey(new).open(key.seal("y")) == "y"


WRONG: list[Callable[[], object]] = [
    lambda: SecretKey("hunter2"),
    lambda: SecretKey(""),
    lambda: SecretKey("é"),
    lambda: SecretKey(Fernet.generate_key().decode()).open(SecretKey(Fernet.generate_key().decode()).seal("x")),
]


@pytest.mark.parametrize("work", WRONG)
def test_a_wrong_key_is_said_so_and_not_shown(work: Callable[[], object]) -> None:
    with pytest.raises(SecretKeyWrong) as caught:
        work()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
