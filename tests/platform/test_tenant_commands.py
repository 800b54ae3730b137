"""`swapmeet tenant|key|usage|audit` against a gateway that listens."""

import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.tenancy import OPERATOR, Tenancy
from swapmeet_registry import Fingerprint, Registry
from swapmeet_serving import Call, Chunk, join

DIGEST = "sha256:" + "0" * 64


class Short:
    """Replicas that read four tokens and make one."""

    async def generate(self, call: Call) -> AsyncIterator[Chunk]:
        yield Chunk(text="ok", token_ids=(1,), finish_reason="stop", prompt_tokens=4, completion_tokens=1)

    async def answer(self, call: Call) -> tuple[Chunk, ...]:
        return (join([each async for each in self.generate(call)]),)


@pytest.fixture
def url(tenancy: Tenancy, tmp_path: Path) -> Iterator[str]:
    base = Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)
    app = create_app(Services(Registry(f"file://{tmp_path}/registry"), tenancy, base, Short()))  # type: ignore[arg-type]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=5):
        yield f"http://127.0.0.1:{port}"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    url: str,
    key_of: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    command_line: Run,
    tmp_path: Path,
) -> Run:
    """Run a command as the operator, or with another key; gives exit code, output and errors."""
    monkeypatch.setenv("SWAPMEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWAPMEET_URL", url)
    monkeypatch.setenv("NO_PROXY", "*")
    boss = key_of(OPERATOR, "owner")

    def call(*arguments: object, key: str = boss) -> tuple[int, str, str]:
        monkeypatch.setenv("SWAPMEET_API_KEY", key)
        return command_line(*arguments)

    return call


def parsed(done: tuple[int, str, str]) -> Any:
    assert done[0] == 0, done
    assert done[1].count("\n") == 1
    return json.loads(done[1])


def test_a_tenant_gets_a_key_and_uses_it(run: Run, url: str) -> None:
    made = parsed(run("tenant", "create", "acme", "--weight", 2, "--tokens-a-minute", 1000, "--json"))
    assert (made["weight"], made["quotas"]["tokens_a_minute"]) == (2.0, 1000)
    parsed(run("tenant", "set", "acme", "--tokens-a-minute", "none", "--stored-bytes", 5, "--json"))
    code, shown, _ = run("tenant", "show", "acme")
    assert code == 0
    assert [line.split() for line in shown.splitlines()][:2] == [["acme"], ["weight", "2"]]
    assert "stored_bytes         5" in shown
    assert "tokens_a_minute      none" in shown
    assert [row["name"] for row in parsed(run("tenant", "list", "--json"))["tenants"]] == ["acme", "admin"]

    code, key, note = run("key", "create", "--tenant", "acme", "--scope", "owner", "--expires", "90d", "--name", "ana")
    assert code == 0
    assert key.startswith("sm-")
    assert key.count("\n") == 1, "nothing but the key, for scripts"
    assert "of acme may admin, infer, publish, read, train, until" in note
    key = key.strip()
    body = {"model": "tiny", "prompt": "x"}
    with httpx.Client(trust_env=False) as http:
        answered = http.post(f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
    assert answered.status_code == 200

    (own,) = parsed(run("key", "list", "--json", key=key))["keys"]
    assert (own["name"], own["hint"], own["tenant"]) == ("ana", key[-4:], "acme")
    assert f"…{key[-4:]}" in run("key", "list", "--tenant", "acme")[1]
    rotated = parsed(run("key", "rotate", own["id"], "--grace", "2h", "--json", key=key))
    assert rotated["value"] != key
    assert "is revoked" in run("key", "revoke", own["id"], key=rotated["value"])[1]
    code, out, error = run("key", "list", key=key)
    assert (code, out) == (1, "")
    assert error.startswith("swapmeet: Missing, unknown, revoked or expired API key.")

    code, log, _ = run("audit", key=rotated["value"])
    assert [line.split("  ")[2].split()[0] for line in log.splitlines()] == [
        "key.revoke", "key.rotate", "key.create", "tenant.change", "tenant.create",
    ]  # fmt: skip
    assert key not in log


def test_usage_is_printed_for_people_and_for_programs(
    run: Run, url: str, key_of: Callable[..., str], tenancy: Tenancy
) -> None:
    key = key_of("acme", "infer", "read")
    assert run("usage", key=key)[1] == "nothing was used\n"
    with httpx.Client(trust_env=False, headers={"authorization": f"Bearer {key}"}) as http:
        for _ in range(3):
            http.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "x"})
    tenancy.flush()
    report = parsed(run("usage", "--by", "adapter", "--by", "day", "--json", key=key))
    assert [(row["adapter"], row["inference_prompt_tokens"]) for row in report["data"]] == [("tiny", 12)]
    lines = run("usage", "--by", "tenant")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["acme"],
        ["inference_requests", "3"],
        ["inference_prompt_tokens", "12"],
        ["inference_output_tokens", "3"],
    ]
    table = run("usage", "--by", "tenant", "--csv", "--start", "2026-01-01", "--tenant", "acme")[1].splitlines()
    assert table[0].startswith("tenant,inference_requests,")
    assert table[1].startswith("acme,3,12,3,")
    assert len(table) == 2


def test_a_page_is_not_all(run: Run, key_of: Callable[..., str]) -> None:
    for _ in range(105):
        key_of("acme", "infer")
    assert len(parsed(run("key", "list", "--tenant", "acme", "--json"))["keys"]) == 105


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tenant", "create", "Acme"], 1, "not a tenant's name"),
        (["tenant", "create", "acme", "--stored-bytes", "1.5"], 2, "Give a whole number, or 'none'"),
        (["tenant", "show", "nobody"], 1, "There is no tenant 'nobody'"),
        (["tenant", "show", "../keys"], 1, "there is nothing at"),
        (["tenant", "set", "nobody", "--suspend"], 1, "There is no tenant 'nobody'"),
        (["tenant", "set", "admin", "--suspend"], 1, "can not be suspended"),
        (["key", "create"], 2, "--scope"),
        (["key", "create", "--scope", "root"], 1, "'root': no such scope or role"),
        (["key", "create", "--scope", "infer", "--expires", "soon"], 2, "Write 90d, 12h"),
        (["key", "revoke", "key-0"], 1, "There is no key of this id"),
        (["usage", "--by", "hour"], 2, "hour"),
        (["usage", "--start", "soon"], 1, "start"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: list[str], code: int, words: str) -> None:
    found, out, error = run(*arguments)
    assert (found, out) == (code, "")
    assert words.lower() in error.lower()
    assert "Traceback" not in error
