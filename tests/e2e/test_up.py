"""What a restart keeps, what `up` leaves behind, and what it finishes before it ends."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest


def children(pid: int) -> list[str]:
    """Processes below one, however deep."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    found, grown = {str(pid)}, True
    while grown:
        more = {row[0] for row in rows if row[1] in found} - found
        found, grown = found | more, bool(more)
    return [row[0] for row in rows if row[0] in found and row[0] != str(pid)]


@pytest.mark.slow
def test_a_restart_keeps_key_and_adapters_and_a_stop_finishes_answers_and_leaves_no_process(
    serving: Callable[..., Any],
    swapmeet: Callable[..., Any],
    random_lora: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    with serving(home, tiny_llama) as first:
        started = children(first.process.pid)
        environment = {"SWAPMEET_URL": first.url, "SWAPMEET_API_KEY": first.key}
        with ThreadPoolExecutor() as pool:
            chats = [
                pool.submit(swapmeet, "chat", "tiny-llama", "Hello", "--max-tokens", 8, "--json", **environment),
                pool.submit(swapmeet, "chat", "acme/absent", "Hello", **environment),
                pool.submit(swapmeet, "chat", "tiny-llama", "Hello", **environment | {"SWAPMEET_API_KEY": "sm-forged"}),
            ]
        answer, unknown, forged = (chat.result() for chat in chats)
        assert answer.returncode == 0, answer.stderr
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "acme/absent" in unknown.stderr
        assert forged.returncode == 1
        assert "API key" in forged.stderr
        # published while the server runs, without telling it
        adapter = random_lora(tiny_llama, tmp_path / "adapter")
        (adapter / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        assert swapmeet("push", adapter, "acme/late", "--base", tiny_llama, "--home", home).returncode == 0
        late = swapmeet("chat", "acme/late", "Hello", "--max-tokens", 8, "--json", **environment)
        assert late.returncode == 0, late.stderr
        with_template = children(first.process.pid)
        assert len(set(with_template) - set(started)) >= 1, "a process renders the adapter's own template"
        started = [*started, *with_template]
    assert started
    for _ in range(50):  # the system takes its time to end what was killed
        listed = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        left = [line for line in listed.splitlines() if line.split()[0] in started]
        if not left:
            break
        time.sleep(0.1)
    assert left == []

    with serving(home, tiny_llama) as second:
        assert second.key == first.key
        environment = {"SWAPMEET_URL": second.url, "SWAPMEET_API_KEY": second.key}
        used = json.loads(swapmeet("usage", "--by", "adapter", "--json", **environment).stdout)["data"]
        assert {row["adapter"]: row["inference_requests"] for row in used} == {"tiny-llama": 1, "acme/late": 1}
        again = swapmeet("chat", "acme/late", "Hello", "--max-tokens", 8, "--json", **environment)
        assert json.loads(again.stdout) == json.loads(late.stdout)
        assert_a_stop_lets_a_stream_finish_and_takes_no_more(second)


def assert_a_stop_lets_a_stream_finish_and_takes_no_more(server: Any) -> None:
    body = {"model": "tiny-llama", "prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "stream": True}
    body["return_token_ids"] = True
    headers = {"authorization": f"Bearer {server.key}"}
    assert httpx.get(f"{server.url}/readyz", trust_env=False, timeout=30).json() == {"status": "ready"}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        server.process.send_signal(signal.SIGTERM)
        *rest, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in (first, *rest)]
    assert sum(len(event["choices"][0]["token_ids"]) for event in events) == 400
    errors = server.process.communicate(timeout=60)[1]
    assert server.process.returncode == 0, errors
    assert "graceful_shutdown" not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz", trust_env=False)


@pytest.mark.slow
def test_memory_that_would_refuse_nearly_everything_is_refused(
    swapmeet: Callable[..., Any], make_tiny: Callable[..., Path], free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Known once the base is loaded, in the engine's own process; the reason comes all the way, and at once."""
    large = {"num_hidden_layers": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048}  # 2 KiB a token
    base = make_tiny(tmp_path / "large", "llama", **large)
    up = ("up", "--base", base, "--home", tmp_path / "home", "--port", free_port())
    refused = swapmeet(*up, SWAPMEET_KV_MEMORY=str(1 << 20))
    assert refused.returncode == 1
    (last,) = refused.stderr.strip().splitlines()[-1:]
    assert last.startswith("swapmeet: The engine did not start: 1048576 bytes for keys and values hold 512 tokens")
    assert last.endswith("Set kv_memory to 2097152 or more.")
