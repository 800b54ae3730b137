"""A small HTTP client for a running server; applications may as well use the `openai` package."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import httpx

from swapmeet.errors import ApiError, NotConfigured
from swapmeet.settings import load_settings

Messages = Sequence[dict[str, str]]


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

    def call(self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that a route answers with.

        Args:
            method: of HTTP.
            path: from the server's root, with its parts encoded.
            body: to be sent as JSON.
            query: parameters; those that are None are left out.

        Raises:
            ApiError: the server refused, or did not answer.
        """
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self.http.request(method, path, json=body, params=given)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _api_error(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiError(f"{self.http.base_url} is no Swapmeet server. Check SWAPMEET_URL.")
        return answer

    def listed(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Everything that a list has, page after page."""
        asked = dict(query or {})
        while True:
            page = self.call("GET", path, query=asked)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            asked["after"] = page["data"][-1]["id"]

    def _json(self, method: str, path: str, body: Any = None, *, expect: str) -> Any:
        try:
            response = self.http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _api_error(response)
        try:
            return response.json()[expect]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{self.http.base_url} is no Swapmeet server. Check SWAPMEET_URL.") from error

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
