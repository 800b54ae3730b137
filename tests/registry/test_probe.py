"""Stores that keep what they promise are certified, and those that lie are not."""

import json
from pathlib import Path
from typing import Any

import liars
import pytest
from botocore.credentials import Credentials
from s3_proxy import Proxy
from typer.testing import CliRunner

from swapmeet.cli import app
from swapmeet_registry import Registry, StoreDenied, StoreError, open_store
from swapmeet_registry.stores.probing import probe, s3_promises, store_promises
from swapmeet_registry.stores.s3_upload import unfinished


@pytest.fixture
def liar(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy whose `behave` decides how it lies."""
    proxy.credentials = Credentials("test", "test")
    monkeypatch.setattr(store_promises, "BIG", 1 << 20)
    monkeypatch.setattr(store_promises, "READS", 5)
    monkeypatch.setattr(s3_promises, "HONEST", 12)
    return proxy


def failures(url: str, rounds: int = 5) -> dict[str, str]:
    found = probe(url, rounds=rounds)
    assert found.certified is not any(check.outcome in ("failed", "skipped") for check in found.checks)
    return {check.name: check.seen for check in found.checks if check.outcome == "failed"}


def test_a_store_that_keeps_its_promises(store_url: str) -> None:
    store = open_store(store_url)
    store.swap("heads/mine.json", b"1", None)
    found = probe(store_url, rounds=10)
    assert found.certified, found
    assert {check.outcome for check in found.checks} <= {"passed", "lacking"}
    assert list(store.list("")) == ["heads/mine.json"]
    if store_url.startswith("s3"):
        assert list(unfinished(store.bucket, "")) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [True, False])
def test_nothing_is_left_in_a_folder(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "a" / "b"
    if made:
        folder.mkdir(parents=True)
    assert probe(folder.as_uri(), rounds=1).certified
    assert [*tmp_path.rglob("*")] == ([tmp_path / "a", folder] if made else [])
    assert Registry(folder.as_uri()).names() == []


def test_nothing_is_left_in_a_bucket(bucket: str) -> None:
    assert probe(f"s3://{bucket}", rounds=1).certified
    assert (
        list(open_store(f"s3://{bucket}").bucket.client.list_object_versions(Bucket=bucket).get("Versions", [])) == []
    )  # type: ignore[attr-defined]


def test_a_hub(hub: Any) -> None:
    found = probe("hf://lab-1", rounds=3)
    assert found.certified, found
    assert not hub.repositories


def test_an_honest_proxy_is_certified(liar: Proxy, bucket: str) -> None:
    assert failures(f"s3://{bucket}") == {}


LIES = {
    "strips": (lambda: liars.strips_conditions, {"create once", "replace only what is expected"}),
    "if-match": (lambda: liars.ignores_if_match, {"replace only what is expected", "conditions answered truly"}),
    "random-412": (liars.refuses_at_random, {"conditions answered truly"}),
    "stale-objects": (lambda: liars.serves_stale("objects"), {"read after write"}),
    "stale-listings": (lambda: liars.serves_stale("listings"), {"list after write"}),
    "torn-ranges": (lambda: liars.tears_ranges, {"ranges", "ranges as asked for", "big object"}),
    "no-ranges": (lambda: liars.ignores_ranges, {"ranges", "ranges as asked for"}),
    "no-metadata": (lambda: liars.forgets_metadata, {"lost answers"}),
    "damage": (lambda: liars.finds_damage_everywhere, {"read after write", "odd keys", "ranges", "big object"}),
    "racy": (liars.looks_before_it_writes, {"create race"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_found_out(liar: Proxy, bucket: str, lie: str) -> None:
    make, broken = LIES[lie]
    liar.behave = make()
    found = failures(f"s3://{bucket}")
    assert found.keys() >= broken, found


def test_a_wrong_clock_is_noticed(liar: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = store_promises.time.time
    monkeypatch.setattr(store_promises.time, "time", lambda: now() + 7200)
    assert "clock differs from this machine's by 7200" in failures(f"s3://{bucket}")["clock"]


def test_what_can_not_be_reached_is_not_judged(bucket: str, aws: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no bucket"):
        probe("s3://no-such-bucket")
    aws.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    with pytest.raises(StoreDenied):
        probe(f"s3://{bucket}")


def test_the_command_says_each_check_and_refuses(liar: Proxy, bucket: str) -> None:
    done = CliRunner().invoke(app, ["store", "probe", f"s3://{bucket}", "--rounds", "2", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["certified"] is True
    assert "passed   create race" in done.stderr
    liar.behave = liars.strips_conditions
    done = CliRunner().invoke(app, ["store", "probe", f"s3://{bucket}", "--rounds", "2"])
    assert done.exit_code == 1
    assert "failed   create once" in done.stderr
    assert "accepted, and not honoured" in done.stderr
    assert "must not be used for a registry" in done.stdout


def test_garbage_is_collected_by_command(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    store.put(f"blobs/sha256/{digest}", b"", digest)
    command = ["store", "gc", "--registry", tmp_path.as_uri(), "--home", str(tmp_path / "home"), "--age", "0"]
    done = CliRunner().invoke(app, [*command, "--dry-run"])
    assert done.stdout == "1 of 1 objects would go, 0 bytes.\n"
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout) == {"objects": 1, "bytes": 0, "examined": 1, "unfinished": 0, "dry_run": False}
    assert list(store.list("blobs/")) == []
