"""Stuck, or only at work."""

import pytest

from swapmeet_serving.errors import EngineDead
from swapmeet_serving.heartbeat import Heartbeat


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_a_step_that_takes_too_long_is_stuck() -> None:
    clock = Clock()
    heartbeat = Heartbeat(10, clock)
    clock.now += 1000  # loading, or waiting for work
    heartbeat.check()
    with heartbeat.step():
        clock.now += 10
        heartbeat.check()
        clock.now += 1
        with pytest.raises(EngineDead, match="more than 10 s"):
            heartbeat.check()
    heartbeat.check()
    with pytest.raises(ZeroDivisionError), heartbeat.step():
        raise ZeroDivisionError
    clock.now += 1000
    heartbeat.check()


def test_the_rate_is_since_the_last_question() -> None:
    clock = Clock()
    heartbeat = Heartbeat(10, clock)
    assert heartbeat.rate() == 0
    for _ in range(6):
        with heartbeat.step():
            clock.now += 0.5
    assert heartbeat.rate() == 2
    clock.now += 1
    assert heartbeat.rate() == 0
