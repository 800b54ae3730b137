"""`/metrics` and the request log of a gateway over replicas that answer by a script."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from swapmeet.gateway.app import create_app
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.request_trace import log, log_to
from swapmeet.gateway.services import Services
from swapmeet.tenancy import Tenancy
from swapmeet_registry import Fingerprint, Registry
from swapmeet_serving import Call, Chunk
from swapmeet_serving.calls import Stages
from swapmeet_serving.errors import Overloaded
from swapmeet_serving.meter import Meter
from swapmeet_serving.metrics import Snapshot
from swapmeet_serving.request import Request
from swapmeet_serving.sequence import Sequence

DIGEST = "sha256:" + "0" * 64
ADAPTER = f"acme/legal@{DIGEST}"
BASE = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
STAGES = Stages("abc", None, {"prompt": 0.5, "admitted": 0.7, "first_token": 3.0, "finished": 9.0})
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}


class Scripted:
    """Replicas whose answers and measurements are set by tests."""

    def __init__(self) -> None:
        self.script: list[Chunk | Exception] = [
            Chunk("a secret", (1,), None, 5, 1),
            Chunk(" answer", (2,), "stop", 5, 2, stages=STAGES),
        ]
        self.posted: list[Snapshot] = []
        self.ids: list[str] = []

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        self.ids.append(call.request_id)
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            yield item

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return ([chunk async for chunk in self.generate(call)][-1],)

    async def describe(self) -> dict[str, Any]:
        return {}

    async def measurements(self) -> list[Snapshot]:
        return self.posted


@pytest.fixture
def replicas() -> Scripted:
    return Scripted()


@pytest.fixture
def services(replicas: Scripted, tenancy: Tenancy, tmp_path: Path) -> Services:
    return Services(Registry(f"file://{tmp_path}/registry"), tenancy, BASE, replicas)


@pytest.fixture
def client(services: Services, key_of: Callable[..., str]) -> Iterator[TestClient]:
    with TestClient(create_app(services), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key_of('admin', 'admin')}"
        yield client


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Any]:
    """Gives the log's lines so far."""
    path = tmp_path / "logs" / "requests.jsonl"
    log_to(path)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    for handler in [each for each in log.handlers if isinstance(each, RotatingFileHandler)]:
        log.removeHandler(handler)
        handler.close()


def worked(adapter: str = ADAPTER) -> Meter:
    """A meter that saw one request."""
    meter = Meter()
    sequence = Sequence(Request("1", (1, 2, 3), adapter), 4)
    with meter.load(adapter, "read"):
        pass
    meter.arrived([sequence])
    meter.admitted([sequence])
    meter.stepped([sequence], sequence.timeline.admitted)
    sequence.tokens.append(4)
    meter.ended(sequence, "stop")
    return meter


def post(replicas: Scripted, *identifiers: str) -> None:
    families = tuple(worked().families({"device": [ADAPTER]}))
    replicas.posted += [Snapshot("replica", each, families) for each in identifiers]


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    series = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(series) == len(found), "each series stands there once"
    return series


def value(page: str, name: str, **labels: str) -> float:
    return samples(page)[name, frozenset(labels.items())]


def test_one_scrape_shows_all_replicas(client: TestClient, replicas: Scripted) -> None:
    post(replicas, "r1", "r2")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    for replica in ("r1", "r2"):
        assert value(answer.text, "swapmeet_generated_tokens_total", replica=replica) == 1
        assert value(answer.text, "swapmeet_requests_total", replica=replica, outcome="stop") == 1
        assert value(answer.text, "swapmeet_time_to_first_token_seconds_count", replica=replica) == 1
        assert value(answer.text, "swapmeet_time_to_first_token_seconds_bucket", replica=replica, le="+Inf") == 1
        labels = {"adapter": "acme/legal", "digest": "0" * 12, "replica": replica}
        assert value(answer.text, "swapmeet_adapter_load_seconds_count", step="read", **labels) == 1
        assert value(answer.text, "swapmeet_adapter_resident", tier="device", **labels) == 1
    assert answer.text.count("# TYPE swapmeet_generated_tokens_total counter") == 1


def test_openmetrics_is_given_to_whoever_asks(client: TestClient, replicas: Scripted) -> None:
    post(replicas, "r1")
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(answer.text)}
    assert "swapmeet_generated_tokens" in names


def test_the_gateway_counts_routes_and_not_paths(
    services: Services, key_of: Callable[..., str], replicas: Scripted
) -> None:
    http = HttpMeter()
    with TestClient(create_app(services, http, metrics_public=True), raise_server_exceptions=False) as client:
        key = {"authorization": f"Bearer {key_of('acme', 'infer')}"}
        client.post("/v1/chat/completions", json=CHAT, headers=key)
        client.post("/v1/chat/completions", json=CHAT)
        for path in ("/v1/models/acme/a", "/v1/models/acme/b"):
            client.get(path, headers=key)
        for number in range(5):
            client.request(f"X{number}", f"/nowhere/{number}")
        replicas.posted = [Snapshot("gateway", "g1", tuple(http.families()))]
        page = client.get("/metrics").text

    def requests(**labels: str) -> float:
        return value(page, "swapmeet_http_requests_total", gateway="g1", **labels)

    chat = "/v1/chat/completions"
    assert requests(method="POST", route=chat, status="200") == 1
    assert requests(method="POST", route=chat, status="401") == 1
    assert requests(method="GET", route="/v1/models/{model:path}", status="404") == 2
    assert requests(method="unknown", route="unknown", status="404") == 5
    assert value(page, "swapmeet_http_request_seconds_count", gateway="g1", route=chat) == 2
    assert value(page, "swapmeet_http_first_byte_seconds_count", gateway="g1", route=chat) == 2
    assert value(page, "swapmeet_http_in_flight_requests", gateway="g1") == 0


@pytest.mark.parametrize(("scope", "status"), [("admin", 403), ("metrics", 200), ("infer", 403), (None, 401)])
def test_metrics_are_the_operator_s(
    client: TestClient, key_of: Callable[..., str], scope: str | None, status: int
) -> None:
    assert client.get("/metrics").status_code == 200
    client.headers.pop("authorization")
    headers = {"authorization": f"Bearer {key_of('acme', scope)}"} if scope else {}
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "permission_denied"
        assert "swapmeet_" not in answer.text


def test_metrics_may_be_opened(services: Services) -> None:
    with TestClient(create_app(services, metrics_public=True)) as client:
        assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line(client: TestClient, replicas: Scripted, lines: Any, stream: bool) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    (line,) = lines()
    assert line["request"] == answer.headers["x-request-id"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert datetime.fromisoformat(line["time"]).tzinfo
    (call,) = line["calls"]
    assert call["id"] == replicas.ids[0]
    assert call["outcome"] == "stop"
    assert (call["adapter"], call["adapter_from"], call["replica"]) == (None, None, "abc")
    assert (call["prompt_tokens"], call["completion_tokens"]) == (5, 2)
    assert call["stages"] == STAGES.milliseconds
    assert 0 <= call["sent"] <= line["first_byte"] <= line["finished"]
    assert "secret" not in json.dumps(line)


def test_a_client_s_own_id_is_logged_and_the_engine_s_are_others(
    client: TestClient, replicas: Scripted, lines: Any
) -> None:
    given = ["checkout-42", "checkout-42", 'x"}\t{"request": "forged', "x" * 1000]
    for each in given:
        client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": each})
    assert [line["request"] for line in lines()] == [each[:128] for each in given]
    assert len(set(replicas.ids)) == len(given), "the engine's ids are its own"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"), [(Overloaded("Full."), 503, "overloaded"), (KeyError("x"), 500, "internal_error")]
)
def test_failures_have_an_id_and_a_line(
    client: TestClient, replicas: Scripted, lines: Any, stream: bool, error: Exception, status: int, code: str
) -> None:
    replicas.script = [error]
    answer = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    (line,) = lines()
    assert (answer.status_code, line["status"], line["calls"][0]["outcome"]) == (status, status, code)
    assert answer.headers["x-request-id"] == line["request"]


def test_a_failure_in_mid_answer_and_a_request_without_a_call(
    client: TestClient, replicas: Scripted, lines: Any
) -> None:
    replicas.script = [replicas.script[0], Overloaded("Full.")]
    client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    client.post("/v1/chat/completions", json=CHAT | {"model": "acme/absent"})
    client.get("/healthz")
    broken, absent = lines()
    assert (broken["status"], broken["calls"][0]["outcome"]) == (200, "overloaded")
    assert (absent["status"], absent["calls"]) == (404, [])


def test_the_log_is_its_owner_s_and_is_rotated(tmp_path: Path, lines: Any) -> None:
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0
    (handler,) = [each for each in log.handlers if isinstance(each, RotatingFileHandler)]
    assert handler.maxBytes > 0
    assert handler.backupCount > 0
