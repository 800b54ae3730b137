"""`kill -9` at every step of a publish, and publishers that race: on a local folder, on S3 and on a Hub."""

import sys
from pathlib import Path
from typing import Any

import pytest

from swapmeet_registry import Fingerprint, NotFound, Registry, Version, fault

sys.path.append(str(Path(__file__).parent))
from publisher import Publisher

NAME = "acme/legal"
KILLED = (0, list[str]())
everywhere = pytest.mark.parametrize("url", ["local", "s3", "other-s3", "hub"], indirect=True)
"""Also on the second S3 server."""


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
def test_a_publisher_killed_at_any_step(url: str, make_adapter: Any, tmp_path: Path, base: Fingerprint) -> None:
    registry = Registry(url)
    _, first = Publisher(url, make_adapter(tmp_path / "adapter-0"), NAME).wait()
    steps = [step for step in first if step != "hub.created"]  # the others find the repository
    assert steps.count("push.head") == 1
    outcomes = []
    for number in range(1, len(steps) + 1):
        before = visible(registry)
        assert before is not None
        folder = make_adapter(tmp_path / f"adapter-{number}", seed=number)
        assert Publisher(url, folder, NAME, number).wait() == KILLED
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


def test_the_first_version_killed_before_its_head_leaves_no_name(url: str, make_adapter: Any, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    registry = Registry(url)
    _, steps = Publisher(url, folder, "acme/other").wait()
    assert Publisher(url, folder, NAME, steps.index("push.before_head") + 1).wait() == KILLED
    assert (visible(registry), registry.names()) == (None, ["acme/other"])
    assert Publisher(url, folder, NAME).wait()[0] == 1
    assert registry.verify(NAME) == registry.resolve(f"{NAME}:1")


def test_every_named_step_is_reached(bucket: str, hub: object, make_adapter: Any, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    seen: set[str] = set()
    for url in ((tmp_path / "registry").as_uri(), f"s3://{bucket}", "hf://lab-1"):
        seen.update(Publisher(url, folder, NAME).wait()[1])
    assert seen == set(fault.STEPS)


@everywhere
@pytest.mark.slow
def test_eight_processes_publish_eight_versions(url: str, make_adapter: Any, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / f"adapter-{number}", number) for number in range(8)]
    running = [Publisher(url, folder, NAME) for folder in folders]
    numbers = [each.wait()[0] for each in running]
    assert sorted(numbers) == list(range(1, 9))
    registry = Registry(url)
    for number, folder in zip(numbers, folders, strict=True):
        registry.pull(f"{NAME}:{number}", tmp_path / f"pulled-{number}")
        weights = "adapter_model.safetensors"
        assert (tmp_path / f"pulled-{number}" / weights).read_bytes() == (folder / weights).read_bytes()
    listing = registry.show(NAME)
    assert len(listing.history) == 8
    assert listing.aliases == {"prod": 8, "latest": 8}
