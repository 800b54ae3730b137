"""Turns: one thread for each key, and nothing kept of keys that nobody uses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from swapmeet_serving.turns import Turns


def test_one_thread_for_each_key_and_nothing_is_kept() -> None:
    turns = Turns()
    inside: dict[str, int] = {}

    def work(number: int) -> None:
        key = f"k{number % 7}"
        with turns.of(key):
            assert inside.setdefault(key, 0) == 0
            inside[key] += 1
            threading.Event().wait(0.0005)
            inside[key] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert len(turns) == 0


def test_different_keys_do_not_wait_and_a_failure_lets_go() -> None:
    turns = Turns()
    with turns.of("a"), turns.of("b"):
        assert len(turns) == 2
    with pytest.raises(ValueError, match="inside"), turns.of("a"):
        raise ValueError("inside")
    assert len(turns) == 0
    with turns.of("a"):
        pass
