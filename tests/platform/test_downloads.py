"""What counts as a download."""

import threading

import pytest

from swapmeet.gateway import downloads as module
from swapmeet.gateway.downloads import Downloads
from swapmeet_registry import Version

FIRST, SECOND = (
    Version("acme/legal", number, f"sha256:{number:064x}", "2026-01-01T00:00:00.000000Z") for number in (1, 2)
)


@pytest.fixture
def counted() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def downloads(counted: list[tuple[int, str]]) -> Downloads:
    return Downloads(lambda version, tenant: counted.append((version.version, tenant)))


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ([(0, 100)], 1),
        ([(0, 100), (0, 100)], 2),  # the counter knows that it is the same day
        ([(99, 100)], 0),
        ([(0, 99), (0, 0), (100, 100)], 0),
        ([(50, 100), (0, 50)], 1),
        ([(0, 30), (20, 60), (60, 100)], 1),
        ([(0, 1), (2, 3), (1, 2), (10, 100), (3, 9)], 0),
        ([(0, 1), (2, 3), (1, 2), (10, 100), (3, 9), (9, 10)], 1),
        ([(0, 70), (65, 100), (99, 100)], 1),  # an answer that broke off, and what was asked for then
    ],
)
def test_all_bytes_are_a_download(
    downloads: Downloads, counted: list[tuple[int, str]], parts: list[tuple[int, int]], count: int
) -> None:
    for start, end in parts:
        downloads.sent(FIRST, "acme", 100, start, end)
    assert counted == [(1, "acme")] * count


def test_parts_of_others_are_others_downloads(downloads: Downloads, counted: list[tuple[int, str]]) -> None:
    downloads.sent(FIRST, "acme", 100, 0, 50)
    downloads.sent(SECOND, "acme", 100, 50, 100)
    downloads.sent(FIRST, "beta", 100, 50, 100)
    assert counted == []
    downloads.sent(FIRST, "acme", 100, 50, 100)
    assert counted == [(1, "acme")]


def test_memory_has_a_limit(
    downloads: Downloads, counted: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "MOST_SPANS", 10)
    for tenant in "abcd":
        downloads.sent(FIRST, tenant, 100, 0, 50)
    for tenant in "bcda":
        downloads.sent(FIRST, tenant, 100, 50, 100)
    assert [tenant for _, tenant in counted] == [*"bcd"]
    for place in range(0, 100, 2):
        downloads.sent(FIRST, "e", 100, place, place + 1)
    assert all(len(spans) <= 10 for spans in downloads._spans.values())


def test_parts_at_once_are_one_download(downloads: Downloads, counted: list[tuple[int, str]]) -> None:
    parts = [(start, start + 1) for start in range(400)]
    threads = [
        threading.Thread(target=lambda part=part: downloads.sent(FIRST, "acme", 400, *part))  # type: ignore[misc]
        for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [(1, "acme")]
