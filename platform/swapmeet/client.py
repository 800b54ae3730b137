"""A small HTTP client for a running server; applications may as well use the `openai` package."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx

from swapmeet.adapter_client import RemoteAdapters
from swapmeet.errors import ApiError, NotConfigured
from swapmeet.following import LogLine, Tell, follow, follow_log, job_path, patiently, silent, sweep_path
from swapmeet.settings import load_settings
from swapmeet.uploading import Watch, unwatched, upload
from swapmeet_registry.signing import Trust

Messages = Sequence[dict[str, str]]
Query = Mapping[str, Any]
"""Parameters of a URL; those that are None are left out, and lists stand there once for each entry."""

CHECK_SECONDS = 0.5
"""Between two looks at a file that is being checked."""
HEALTHY = {"status": "ok", "service": "swapmeet"}
"""What a server answers on `/healthz`."""


class Client:
    """Talks to a server.

        with Client("http://127.0.0.1:8000", api_key) as client:
            print(client.chat("acme/dates", "3 May 2024"))

    Without arguments, `SWAPMEET_URL` and `SWAPMEET_API_KEY` are used.

    Raises:
        NotConfigured: no URL or key is known.
    """

    def __init__(self, url: str = "", api_key: str = "", timeout: float = 600) -> None:
        settings = load_settings()
        url, api_key = url or settings.url, api_key or settings.api_key.get_secret_value()
        if not url or not api_key:
            raise NotConfigured("Set SWAPMEET_URL and SWAPMEET_API_KEY: `swapmeet up` prints both.")
        if not api_key.isascii():
            raise NotConfigured("SWAPMEET_API_KEY holds characters that no key has. Copy it from `swapmeet up`.")
        self._trust = settings.trust
        self.http = httpx.Client(
            base_url=url.rstrip("/"), headers={"authorization": f"Bearer {api_key}"}, timeout=timeout
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def models(self) -> list[str]:
        """Names of the base and of every adapter."""
        return [str(item["id"]) for item in self._json("GET", "/v1/models", expect="data")]

    def ready(self) -> bool:
        """Whether an engine answers."""
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def chat(self, model: str, messages: str | Messages, **options: Any) -> str:
        """The whole answer to a prompt or a conversation; `options` are OpenAI's."""
        choices = self._json("POST", "/v1/chat/completions", _chat(model, messages, options), expect="choices")
        return str(choices[0]["message"]["content"])

    def stream(self, model: str, messages: str | Messages, **options: Any) -> Iterator[str]:
        """The answer piece by piece."""
        body = _chat(model, messages, options) | {"stream": True}
        try:
            with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise _api_error(response)
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _piece(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def upload(
        self, path: Path | str, purpose: str = "fine-tune", watch: Watch = unwatched, tell: Tell = silent
    ) -> dict[str, Any]:
        """A file's object, once all of it is there; what is over 64 MB goes in parts.

        Args:
            path: the file's.
            purpose: what it is for.
            watch: is told how many bytes have been sent, and how many there are.
            tell: is told that the server does not answer.

        Raises:
            ApiError: the server refused or did not answer.
            OSError: the file can not be read.
        """
        return upload(self, Path(path), purpose, watch, tell)

    def checked(self, file: str, tell: Tell = silent) -> dict[str, Any]:
        """A file's object, once it is known whether it can be trained on: its `status` is `processed` or `error`."""
        while True:
            found = patiently(lambda: self.call("GET", f"/v1/files/{file}"), tell)
            if found["status"] != "uploaded":
                return found
            time.sleep(CHECK_SECONDS)

    def create_job(self, request: Mapping[str, Any], tell: Tell = silent) -> dict[str, Any]:
        """A fine-tuning job, from OpenAI's fields and our own under `lora`; lost answers make no second job."""
        return patiently(lambda: self.call("POST", "/v1/fine_tuning/jobs", dict(request)), tell)

    def events(self, job: str, tell: Tell = silent) -> Iterator[dict[str, Any]]:
        """All events of a job, oldest first, as they come, until it has ended; the last one is the job itself."""
        return follow(self, job, tell)

    def log(self, job: str, attempt: int | None = None, tail: int | None = None) -> str:
        """What a job's attempts wrote down, also while they run.

        Args:
            job: its id.
            attempt: which of them, counted from 1; all, each below a line of its own, where none is given.
            tail: how many lines of each at most, its last ones.
        """
        return self.text(job_path(job, "logs"), {"attempt": attempt, "tail": tail})

    def follow_log(self, job: str, tail: int | None = None, tell: Tell = silent) -> Iterator[LogLine]:
        """The lines of a job's attempts as they come, until it has ended; see `log`."""
        return follow_log(self, job, tail, tell)

    def create_sweep(self, request: Mapping[str, Any], tell: Tell = silent) -> dict[str, Any]:
        """A sweep: the fields of a job, and under `sweep` what to try; lost answers make no second one."""
        return patiently(lambda: self.call("POST", "/v1/fine_tuning/sweeps", dict(request)), tell)

    def sweep(self, sweep: str) -> dict[str, Any]:
        """A sweep, with its configurations and what they measured under `runs`."""
        return self.call("GET", sweep_path(sweep))

    def sweeps(self) -> Iterator[dict[str, Any]]:
        """All sweeps, newest first."""
        return self.listed("/v1/fine_tuning/sweeps")

    def cancel_sweep(self, sweep: str) -> dict[str, Any]:
        """End a sweep and all its jobs; nothing is published."""
        return self.call("POST", sweep_path(sweep, "cancel"))

    def sweep_events(self, sweep: str, tell: Tell = silent) -> Iterator[dict[str, Any]]:
        """All that is told of a sweep's jobs, as `events`; the last one is the sweep itself."""
        return follow(self, sweep, tell, sweep_path)

    def adapters(self, tell: Tell = silent, trust: Trust | None = None) -> RemoteAdapters:
        """The server's registry: push, pull, tag, sign, verify and more; `trust` instead of what the settings say."""
        return RemoteAdapters(self, tell, trust or self._trust)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The object that one of the API's calls answers with.

        Raises:
            ApiError: the server refused or did not answer; the message says why.
        """
        return dict(self._answer(self._request(method, path, query, json=body, headers=headers)))

    def put(
        self, path: str, content: bytes, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Send bytes as they are."""
        return dict(self._answer(self._request("PUT", path, query, content=content, headers=headers)))

    def listed(self, path: str, query: Query | None = None) -> Iterator[dict[str, Any]]:
        """Everything on a list, page after page."""
        after: dict[str, Any] = {}
        while True:
            page = self._json("GET", path, query={**(query or {}), **after})
            entries, more = page.get("data", []), page.get("has_more", False)
            yield from entries
            if not more or not entries:
                return
            after = {"after": entries[-1]["id"]}

    def text(self, path: str, query: Query | None = None) -> str:
        """What is answered as text."""
        return self.answered(path, query).text

    def answered(self, path: str, query: Query | None = None) -> httpx.Response:
        """An answer that is no JSON, or of which more than its body counts."""
        return self._request("GET", path, query=query)

    def chunks(
        self, path: str, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """An answer's bytes as they come."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            with self.http.stream("GET", path, params=given, headers=dict(headers or {})) as response:
                if response.is_error:
                    response.read()
                    raise _api_error(response)
                yield from response.iter_raw()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def send(self, path: str, fields: Mapping[str, str], name: str, filename: str, content: BinaryIO) -> dict[str, Any]:
        """Post a form with a file, read as it is sent.

        Args:
            path: of the URL.
            fields: the form's text fields.
            name: the field that holds the file.
            filename: the file's name.
            content: its bytes.
        """
        file = (filename, content, "application/octet-stream")
        return dict(self._answer(self._request("POST", path, data=dict(fields), files={name: file})))

    def _json(
        self, method: str, path: str, body: Any = None, query: Query | None = None, *, expect: str | None = None
    ) -> Any:
        return self._answer(self._request(method, path, query, json=body), expect)

    def _answer(self, response: httpx.Response, expect: str | None = None) -> Any:
        try:
            answer = response.json()
            return answer if expect is None else answer[expect]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{self.http.base_url} is no Swapmeet server. Check SWAPMEET_URL.") from error

    def _request(self, method: str, path: str, query: Query | None = None, **content: Any) -> httpx.Response:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self.http.request(method, path, params=given, **content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _api_error(response)
        return response

    def _unreachable(self, error: httpx.TransportError) -> ApiError:
        return ApiError(f"{self.http.base_url} does not answer ({error}). Is `swapmeet up` running there?")


def _chat(model: str, messages: str | Messages, options: dict[str, Any]) -> dict[str, Any]:
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {"model": model, "messages": conversation} | options


def _piece(event: dict[str, Any]) -> str:
    if "error" in event:
        raise ApiError(event["error"]["message"], code=event["error"]["code"])
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _api_error(response: httpx.Response) -> ApiError:
    try:
        error = response.json()["error"]
        return ApiError(str(error["message"]), response.status_code, str(error["code"]))
    except (ValueError, KeyError, TypeError):
        return ApiError(f"The server answered {response.status_code} without a reason.", response.status_code)
