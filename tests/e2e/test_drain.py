"""A server that is told to stop finishes what it has begun, and nothing else."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


@pytest.mark.slow
def test_a_stop_lets_a_stream_finish_and_takes_no_more(
    serving: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    body = {"model": "tiny-llama", "prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with serving(tmp_path / "home", tiny_llama) as server:
        headers = {"authorization": f"Bearer {server.key}"}
        assert httpx.get(f"{server.url}/readyz", trust_env=False, timeout=30).json() == {"status": "ready"}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == 400
        errors = server.process.communicate(timeout=60)[1]
        assert server.process.returncode == 0, errors
        assert "graceful_shutdown" not in errors
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz", trust_env=False)
