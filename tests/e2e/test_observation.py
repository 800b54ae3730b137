"""What an operator sees of a running server: one scrape, and a request's line in the log."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

ASKED = "acme/seen"
PATIENCE = 30
GENERATED = "swapmeet_generated_tokens_total"


def scrape(server: Any, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{server.url}/metrics", headers=headers, timeout=30, trust_env=False)


def total(page: str, name: str, **labels: str) -> float:
    """The sum over all series with these labels."""
    found = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(
        sample.value for sample in found if sample.name == name and labels.items() <= dict(sample.labels).items()
    )


def settled(server: Any) -> str:
    """A scrape with all that was asked before: replicas post every two seconds."""
    pages = [scrape(server, server.key).text]
    while len(pages) < 2 or total(pages[-1], GENERATED) != total(pages[-2], GENERATED):
        time.sleep(2.5)
        pages.append(scrape(server, server.key).text)
    return pages[-1]


@pytest.mark.slow
def test_a_request_is_seen_in_metrics_and_log(
    running: Callable[..., Any],
    swapmeet: Callable[..., Any],
    random_lora: Callable[..., Path],
    smollm2: Path,
    tmp_path: Path,
) -> None:
    server = running(smollm2)
    adapter = random_lora(smollm2, tmp_path / "adapter")
    assert swapmeet("push", adapter, ASKED, "--base", smollm2, "--home", server.home).returncode == 0
    before = settled(server)
    with server.openai() as client:
        ask = client.completions.with_raw_response.create
        options = {"model": ASKED, "prompt": "Hello", "max_tokens": 6, "extra_body": {"ignore_eos": True}}
        answers = [ask(**options), ask(**options, extra_headers={"x-request-id": "checkout-42"})]
    assert answers[1].headers["x-request-id"] == "checkout-42"
    page, deadline = before, time.monotonic() + PATIENCE
    while total(page, GENERATED) < total(before, GENERATED) + 12:
        assert time.monotonic() < deadline, page
        time.sleep(0.2)
        page = scrape(server, server.key).text
    assert total(page, GENERATED) == total(before, GENERATED) + 12
    assert scrape(server).status_code == 401

    labels = {"adapter": ASKED}
    assert total(page, "swapmeet_adapter_requests_total", **labels) == 2
    assert total(page, "swapmeet_adapter_hits_total", **labels) == 1
    for step in ("fetch", "open", "read"):
        assert total(page, "swapmeet_adapter_load_seconds_count", step=step, **labels) == 1
    for tier in ("device", "disk"):
        assert total(page, "swapmeet_adapter_resident", tier=tier, **labels) == 1
    route = "/v1/completions"
    answered = "swapmeet_http_requests_total"
    assert total(page, answered, route=route, status="200") == total(before, answered, route=route, status="200") + 2
    (replica,) = {
        sample.labels["replica"]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if family.name == "swapmeet_step_seconds"
    }

    lines = [json.loads(line) for line in (server.home / "logs" / "requests.jsonl").read_text().splitlines()]
    for answer, tier in zip(answers, ("registry", "device"), strict=True):
        (line,) = [each for each in lines if each["request"] == answer.headers["x-request-id"]]
        assert (line["route"], line["status"]) == (route, 200)
        (call,) = line["calls"]
        assert call["adapter"] == answer.headers["x-swapmeet-adapter"]
        assert (call["replica"], call["outcome"], call["completion_tokens"]) == (replica, "length", 6)
        assert call["adapter_from"] == tier
        stages = [call["stages"].get(stage) for stage in ("prompt", "adapter", "admitted", "first_token", "finished")]
        reached = [each for each in stages if each is not None]
        assert len(reached) == (4 if tier == "device" else 5)
        assert reached == sorted(reached)
