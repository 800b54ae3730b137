"""`kill -9` at every step of a publish, and publishers that race: on a local folder, on S3 and on a Hub."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, NotFound, Registry, Version, fault

NAME = "acme/legal"
everywhere = pytest.mark.parametrize("url", ["local", "s3", "other-s3", "hub"], indirect=True)
"""Also on the second S3 server."""


@pytest.fixture
def publish(publisher: Path, url: str) -> Callable[..., Any]:
    def run(folder: Path, kill_at: int = 0, name: str = NAME) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, publisher, url, folder, name, *([str(kill_at)] if kill_at else [])]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


def visible(registry: Registry) -> Version | None:
    """What a reader sees; whatever it is, all of it is there."""
    try:
        version = registry.verify(NAME)
    except NotFound:
        return None
    listing = registry.show(NAME)
    assert [known.version for known in listing.versions] == list(range(1, version.version + 1))
    assert listing.aliases == {"prod": version.version, "latest": version.version}
    assert registry.names() == [NAME]
    return version


LOOSE = 3
"""Steps of a report's write."""


@everywhere
@pytest.mark.slow
def test_a_publisher_killed_at_any_step(
    publish: Callable[..., Any], url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint
) -> None:
    registry = Registry(url)
    first = publish(make_adapter(tmp_path / "adapter-0")).stdout.split()[1:]
    steps = [step for step in first if step != "hub.created"]  # the others find the repository
    assert steps.count("push.head") == 1
    outcomes = []
    for number in range(1, len(steps) + 1):
        before = visible(registry)
        assert before is not None
        folder = make_adapter(tmp_path / f"adapter-{number}", seed=number)
        assert publish(folder, number).returncode == -signal.SIGKILL
        after = visible(registry)
        assert after is not None
        assert after == before or after.version == before.version + 1
        outcomes.append(after != before)
        retried = registry.push(folder, NAME, base=base, alias="prod")
        assert visible(registry) == retried
        assert retried.version == after.version + 1
    # Once it can be seen it can be seen at every later step, and it can be seen from the write of the head on. On S3
    # the report is written beside the head, so that their steps come in any order.
    loose = LOOSE if url.startswith("s3") else 0
    seen, unseen = outcomes.index(True), len(outcomes) - 1 - outcomes[::-1].index(False)
    assert unseen - seen < loose, outcomes
    around = steps[max(0, seen - loose) : seen + loose + 1]
    assert set(around) & {"local.renamed", "s3.swapped", "hub.committed"}, around


def test_the_first_version_killed_before_its_head_leaves_no_name(
    publish: Callable[..., Any], url: str, make_adapter: Any, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    registry = Registry(url)
    steps = publish(folder, name="acme/other").stdout.split()[1:]
    assert publish(folder, steps.index("push.before_head") + 1).returncode == -signal.SIGKILL
    assert (visible(registry), registry.names()) == (None, ["acme/other"])
    assert publish(folder).returncode == 0
    assert registry.verify(NAME) == registry.resolve(f"{NAME}:1")


def test_every_named_step_is_reached(
    publisher: Path, bucket: str, hub: object, make_adapter: Any, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    seen: set[str] = set()
    for url in ((tmp_path / "registry").as_uri(), f"s3://{bucket}", "hf://lab-1"):
        done = subprocess.run(
            [sys.executable, publisher, url, folder, NAME], capture_output=True, text=True, check=True
        )
        seen.update(done.stdout.split()[1:])
    assert seen == set(fault.STEPS)


@everywhere
@pytest.mark.slow
def test_eight_processes_publish_eight_versions(publisher: Path, url: str, make_adapter: Any, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / f"adapter-{number}", number) for number in range(8)]
    running = [
        subprocess.Popen([sys.executable, publisher, url, folder, NAME], stdout=subprocess.PIPE, text=True)
        for folder in folders
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 8
    numbers = [int(output.split()[0]) for output in outputs]
    assert sorted(numbers) == list(range(1, 9))
    registry = Registry(url)
    for number, folder in zip(numbers, folders, strict=True):
        registry.pull(f"{NAME}:{number}", tmp_path / f"pulled-{number}")
        weights = "adapter_model.safetensors"
        assert (tmp_path / f"pulled-{number}" / weights).read_bytes() == (folder / weights).read_bytes()
    listing = registry.show(NAME)
    assert len(listing.history) == 8
    assert listing.aliases == {"prod": 8, "latest": 8}
