"""`kill -9` of the server and of the client at every step of a publish over HTTP: one version, whole, or none yet."""

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from swapmeet import adapter_parts, following
from swapmeet.audit_export import verify
from swapmeet.client import Client
from swapmeet.database import Database
from swapmeet.database.migrations import upgrade
from swapmeet.database.tables import TenantRow
from swapmeet.errors import ApiError
from swapmeet.retention import Retention
from swapmeet.settings import Settings, load_settings
from swapmeet.tenancy import Tenancy
from swapmeet.tenancy.audit import Audit
from swapmeet_registry import Fingerprint, NotFound, Registry, Version, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.upkeep.fsck import fsck

sys.path.append(str(Path(__file__).parent))
from crashing import Gateway, push

NAME = "acme/legal"
TELLING = ("push.intent", "push.manifest", "push.before_head", "push.head", "s3.swapped")


@dataclass
class Scene:
    """A gateway over a database and a registry, a client of it, and what was acknowledged so far."""

    gateway: Gateway
    settings: Settings
    key: str
    adapter: Path
    folder: Path
    acknowledged: dict[str, Version] = field(default_factory=dict)

    @property
    def registry(self) -> Registry:
        return Registry(self.settings.registry_url)

    @property
    def thorough(self) -> bool:
        """Whether to be killed at nearly every step takes seconds only."""
        return self.settings.registry_url.startswith("file:")

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    def made(self, run: str) -> Path:
        """An adapter of the run's own."""
        folder = self.folder / run
        if not folder.exists():
            shutil.copytree(self.adapter, folder)
            (folder / "README.md").write_text(f"Made by {run}.\n")
        return folder

    def push(self, run: str) -> Version:
        with Client(self.url, self.key) as client:
            version = client.adapters().push(self.made(run), NAME, base="tiny", alias="prod", run=run)
        self.acknowledged[run] = version
        return version

    def look(self) -> dict[str, Version]:
        """The versions that there are, by run; each is whole, and all that was acknowledged is among them."""
        registry, found = self.registry, dict[str, Version]()
        try:
            listing = registry.show(NAME)
        except NotFound:
            assert not self.acknowledged
            return found
        for each in listing.versions:
            manifest = registry.manifest(registry.verify(each.pinned))
            assert manifest.run not in found, f"{manifest.run} made two versions"
            card = next(file for file in manifest.files if file.path == "README.md")
            text = (self.folder / str(manifest.run) / card.path).read_bytes()
            assert card.sha256 == hashlib.sha256(text).hexdigest()
            found[str(manifest.run)] = each
        assert [each.version for each in listing.versions] == list(range(1, len(found) + 1))
        assert listing.aliases == {"prod": len(found), "latest": len(found)}
        assert self.acknowledged.items() <= found.items()
        return found

    def entries(self, subject: str = "") -> list[dict[str, Any]]:
        """What the audit log, which is whole, says of a subject, oldest first."""
        database = Database(self.settings.database_url)
        lines = [line.decode() for line in Audit(database).export("acme")]
        database.close()
        verify(lines)
        return [each for each in map(json.loads, lines[1:]) if each["subject"].startswith(subject)]

    def settle(self) -> None:
        """Everything is written down once, and nothing is left over."""
        database = Database(self.settings.database_url)
        versions = self.look()
        assert versions == self.acknowledged
        entries = [line.decode() for line in Audit(database).export("acme")]
        (log,) = verify(entries)
        assert (log.sequence, log.unended) == (len(entries) - 1, ())
        published = [line for line in entries if '"adapter.publish"' in line and '"done"' in line]
        assert len(published) == len(versions), "each is in the audit log once"
        tenant = database.read(lambda session: session.get_one(TenantRow, "acme"))
        assert tenant.adapter_versions == len(versions)
        retention = Retention(self.settings, database)
        retention.clean()
        retention.count()
        assert database.read(lambda session: session.get_one(TenantRow, "acme")).adapter_versions == len(versions)
        assert list(open_store(self.settings.storage_url).list(adapter_parts.FOLDER)) == []
        assert fsck(self.settings.registry_url, deep=True).sound
        database.close()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new one, on the server that the AWS variables name from now on."""
    import boto3

    named = {"ENDPOINT_URL": s3_server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    for name, value in (named | {"DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid4().hex[:12]}"
    with closing(boto3.client("s3")) as client:
        client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["sqlite, local", "postgresql, s3"])
def scene(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    published: tuple[Fingerprint, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    home, base = tmp_path / "home", published[0]
    home.mkdir()
    BaseLibrary(home).add(str(tiny_llama), "tiny")
    monkeypatch.setattr(following, "PATIENCE_SECONDS", -1.0)
    options: dict[str, Any] = {}
    if request.param == "postgresql, s3":
        bucket = request.getfixturevalue("bucket")
        options = {"registry": f"s3://{bucket}/registry", "storage": f"s3://{bucket}/storage"}
        options["database"] = request.getfixturevalue("postgres_url")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = load_settings(home=home, base="tiny", port=probe.getsockname()[1], **options)
    database = Database(settings.database_url)
    upgrade(database)
    tenancy = Tenancy(database)
    tenancy.tenants.ensure("acme")
    key = tenancy.keys.create("acme", ["developer", "admin"]).key
    database.close()
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    gateway = Gateway(settings, base, aws)
    gateway.start()
    yield Scene(gateway, settings, key, published[1], tmp_path / "made")
    gateway.kill()


@pytest.mark.slow
def test_a_server_killed_at_any_step(scene: Scene) -> None:
    """Of a store's steps at the first and the last of each, since many files go the same way."""
    gateway = scene.gateway
    scene.push("run-warm")
    gateway.arm(0)
    scene.push("run-0")
    steps = gateway.steps()
    assert steps.count("push.head") == 1
    assert (steps[0], steps[-1]) == ("database.before", "database.done")
    outcomes = []
    for number in chosen(steps, scene.thorough):
        run, before = f"run-{number}", scene.look()
        gateway.arm(number)
        with suppress(ApiError):
            scene.push(run)
            assert number > len(steps) - 4, "the first time, what is done in the background may have taken a step"
            continue
        assert gateway.wait_killed()
        after = scene.look()
        assert after.keys() - before.keys() <= {run}
        outcomes.append(run in after)
        if run in after:
            assert [each["outcome"] for each in scene.entries()[-2:]] in (["done", "begun"], ["begun", "done"])
        gateway.start()
        version = scene.push(run)
        assert version == after.get(run, version)
        assert scene.look().keys() == {*before, run}
        assert scene.push(run) == version
    assert outcomes == sorted(outcomes), "what can be seen at a step is seen at each later one"
    assert {*outcomes} == {False, True}
    scene.settle()


CHANGES = {
    "alias.move": ("PUT", "/v1/adapters/{}/aliases/prod", {"version": 1}),
    "version.recall": ("POST", "/v1/adapters/{}/versions/1/recall", {"reason": "leaks"}),
    "model.delete": ("DELETE", "/v1/models/{}", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["sqlite, local"], indirect=True)
def test_a_server_killed_at_any_step_of_a_change(scene: Scene) -> None:
    """Whatever was changed stands in the log, if only as begun; what is said to be done was done."""
    gateway, found = scene.gateway, dict[str, set[tuple[tuple[str, ...], bool]]]()
    for action, (method, path, body) in CHANGES.items():

        def change(number: int, action: str = action, method: str = method, path: str = path, body: Any = body) -> None:
            name = f"acme/{action}-{number}"
            scene.registry.push(scene.adapter, name, base=gateway.base)
            before = scene.registry.show(name)
            gateway.arm(number)
            try:
                with Client(scene.url, scene.key) as client:
                    client.call(method, path.format(name), body)
            except ApiError:
                assert gateway.wait_killed()
                gateway.start()
            outcomes = tuple(each["outcome"] for each in scene.entries(name))
            found.setdefault(action, set()).add((outcomes, scene.registry.show(name) != before))

        change(0)
        for number, step in enumerate(gateway.steps(), 1):
            if step.startswith(("database.", "local.renamed")):
                change(number)
    ends = {((), False), (("begun",), False), (("begun",), True), (("begun", "done"), True)}
    assert found == dict.fromkeys(CHANGES, ends)


def chosen(steps: list[str], thorough: bool) -> list[int]:
    """The numbers, from 1, of the steps to be killed at."""
    last = {step: number for number, step in enumerate(steps, 1)}
    first = {step: number for number, step in reversed([*enumerate(steps, 1)])}
    ours = {n for n, step in enumerate(steps, 1) if step.startswith(("push.", "database."))}
    if thorough:
        return sorted(ours.union(first.values(), last.values()))
    return sorted(last[step] for step in (*TELLING, "database.before", "database.done"))


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["sqlite, local"], indirect=True)
def test_a_client_killed_at_any_step(scene: Scene) -> None:
    for number in range(1, 100):
        run = f"run-{number}"
        before = scene.look()
        code = push(scene.url, scene.key, scene.made(run), NAME, run, number)
        after = scene.look()
        assert after.keys() - before.keys() <= {run}
        if code == 0:
            scene.push(run)
            break
        assert code == -signal.SIGKILL
        version = scene.push(run)
        assert version == after.get(run, version)
    assert number > 8, "each of begin, three files, complete and show, before and after"
    scene.settle()
