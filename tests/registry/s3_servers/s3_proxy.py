"""A proxy before an S3 server: it loses answers, or lies."""

import contextlib
import http.client
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SIGNATURE = ("authorization", "x-amz-date", "x-amz-content-sha256", "host")


class Answer(NamedTuple):
    """What goes out; of an answer that is `cut`, only half of the body."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


@dataclass
class Request:
    """What came in; its headers and body may be changed before it is passed on."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def conditional(self) -> bool:
        return "If-Match" in self.headers or "If-None-Match" in self.headers


Forward = Callable[[], Answer]
Fault = Callable[[Forward], Answer | tuple[int, bytes] | None]
"""Gets a function that passes the request on, and gives the answer, or None to drop the connection."""
Behaviour = Callable[[Request, Forward], Answer | tuple[int, bytes] | None]


class Proxy(ThreadingHTTPServer):
    """Passes requests on; each that is `wanted` first takes a fault from `faults`, if there is one.

    Whoever sets `behave` decides himself what becomes of each request.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.faults: deque[Fault] = deque()
        self.wanted: Callable[[Request], bool] = lambda request: request.conditional
        self.behave: Behaviour = self._faulty
        self.taken: Callable[[Request, Answer], None] = lambda request, answer: None
        """Is told what the server answered."""
        self.requests: list[str] = []
        self.credentials: Credentials | None = None
        """Signs anew what is passed on, for it may have been changed."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever waits no longer hangs up; that is no error."""

    def pass_on(self, request: Request) -> Answer:
        sent = {name: value for name, value in request.headers.items() if name != "Expect"}
        if self.credentials is not None:
            sent = self._signed(request, sent)
        with contextlib.closing(http.client.HTTPConnection(self.upstream)) as upstream:
            upstream.request(request.method, request.path, request.body, sent)
            answer = upstream.getresponse()
            return Answer(answer.status, answer.read(), tuple(answer.getheaders()))

    def _signed(self, request: Request, headers: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in headers.items() if name.lower() not in SIGNATURE}
        unsigned = AWSRequest(request.method, f"http://{self.upstream}{request.path}", kept, request.body)
        S3SigV4Auth(self.credentials, "s3", "us-east-1").add_auth(unsigned)
        return dict(unsigned.headers.items())

    def _faulty(self, request: Request, forward: Forward) -> Any:
        fault = self.faults.popleft() if self.wanted(request) and self.faults else None
        return fault(forward) if fault else forward()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, self.headers, body)
        self.server.requests.append(f"{self.command} {self.path}")
        last: list[Answer] = []

        def forward() -> Answer:
            last.append(self.server.pass_on(request))
            self.server.taken(request, last[-1])
            return last[-1]

        given = self.server.behave(request, forward)
        if given is None:
            self.close_connection = True
            return
        answer = Answer(*given)
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers or (last[-1].headers if last else ()):
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.close_connection |= answer.cut
        self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 - names that http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass
