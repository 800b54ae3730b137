"""Owners delete their models and share them, with the unmodified client; nobody else can, or learns that they exist."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from swapmeet.database import Database
from swapmeet.database.tables import TenantRow
from swapmeet.gateway import models
from swapmeet.gateway.app import create_app
from swapmeet.gateway.listener import event_loop, listening
from swapmeet.gateway.services import Services
from swapmeet.permissions import Permissions
from swapmeet.tenancy import Tenancy
from swapmeet_registry import NotFound, Registry
from swapmeet_registry.fingerprint import Fingerprint, fingerprint

Client = Callable[[str], openai.OpenAI]


@pytest.fixture(scope="module")
def published(tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: Any) -> tuple[Fingerprint, Path]:
    return fingerprint(tiny_llama, "tiny"), random_lora(tiny_llama, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture
def registry(published: tuple[Fingerprint, Path], tmp_path: Path) -> Registry:
    base, adapter = published
    registry = Registry(f"file://{tmp_path}/registry")
    for name in ("acme/legal", "acme/legal", "acme/legal", "acme/permissions", "beta/notes"):
        registry.push(adapter, name, base=base)
    registry.tag("acme/legal", "prod", "2")
    return registry


@pytest.fixture
def client(
    database: Database, registry: Registry, published: tuple[Fingerprint, Path], tmp_path: Path
) -> Iterator[Client]:
    """`client("acme")`: an `openai` client with a key of this tenant that may do everything there."""
    tenants = ("admin", "acme", "beta", "gamma")
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in tenants]))
    tenancy = Tenancy(database)
    replicas: Any = None
    app = create_app(Services(registry, tenancy, published[0], replicas))
    models.install(app, Permissions(database))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made: list[openai.OpenAI] = []

    def of(tenant: str, role: str = "owner") -> openai.OpenAI:
        url, key = f"http://127.0.0.1:{port}/v1", tenancy.keys.create(tenant, [role]).key
        made.append(openai.OpenAI(base_url=url, api_key=key, max_retries=0))
        return made[-1]

    with event_loop() as loop, listening(app, loop, "127.0.0.1", port, drain=5):
        yield of
    for each in made:
        each.close()


def left(registry: Registry, name: str) -> list[int]:
    return [version.version for version in registry.show(name).versions if version.deleted is None]


def test_a_deleted_model_is_gone(client: Client, registry: Registry) -> None:
    ana = client("acme")
    pinned = registry.resolve("acme/legal").pinned
    registry.yank("acme/legal:1", "old")
    assert ana.models.retrieve("acme/legal:prod").owned_by == "acme"
    deleted = ana.models.delete("acme/legal")
    assert (deleted.id, deleted.object, deleted.deleted) == ("acme/legal", "model", True)
    assert left(registry, "acme/legal") == []
    assert {version.deleted for version in registry.show("acme/legal").versions} == {"Deleted by its owner."}
    assert "acme/legal" not in {model.id for model in ana.models.list()}
    for name in ("acme/legal", "acme/legal:prod", "acme/legal:3", pinned):
        with pytest.raises(openai.NotFoundError):
            ana.models.retrieve(name)
    with pytest.raises(openai.NotFoundError) as again:
        ana.models.delete("acme/legal")
    assert (again.value.code, again.value.type) == ("model_not_found", "invalid_request_error")
    told = [notice.version for notice in registry.recalls.after().notices]
    assert told == [1, 2, 3], "servers that have it drop it"


def test_what_is_left_of_a_withdrawn_model_can_be_deleted(client: Client, registry: Registry) -> None:
    """As after a server was killed between two of its versions, of which the last was yanked before."""
    ana = client("acme")
    pinned = registry.resolve("acme/legal:3").pinned
    for number, how in ((1, "deleted"), (2, "recalled"), (3, "yanked")):
        registry.withdraw(f"acme/legal:{number}", how, "old")  # type: ignore[arg-type]
    assert registry.resolve(pinned).version == 3, "whoever pinned it has it still"
    assert ana.models.delete("acme/legal").deleted
    assert left(registry, "acme/legal") == []
    with pytest.raises(NotFound):
        registry.resolve(pinned)
    with pytest.raises(openai.NotFoundError):
        ana.models.delete("acme/legal")


def test_one_withdrawn_version_can_be_deleted(client: Client, registry: Registry) -> None:
    """Its bytes are there until then."""
    ana = client("acme")
    registry.yank("acme/legal:1", "old")
    registry.recall("acme/legal:prod", "leaks")
    for name, stay in (("acme/legal:1", [2, 3]), ("acme/legal:prod", [3])):
        assert ana.models.delete(name).deleted
        assert left(registry, "acme/legal") == stay
        with pytest.raises(openai.NotFoundError):
            ana.models.delete(name)


@pytest.mark.parametrize(("name", "gone"), [("acme/legal:1", 1), ("acme/legal:prod", 2), ("digest", 3)])
def test_one_version_can_be_deleted(name: str, gone: int, client: Client, registry: Registry) -> None:
    name = registry.resolve("acme/legal:3").pinned if name == "digest" else name
    assert client("acme").models.delete(name).id == name
    assert left(registry, "acme/legal") == [each for each in (1, 2, 3) if each != gone]


def test_what_is_not_ones_own_is_as_if_it_did_not_exist(client: Client, registry: Registry) -> None:
    ana = client("acme")
    words = set()
    for name in ("beta/notes", "beta/absent", "acme/absent", "acme/legal:9", "acme/legal+beta/notes", "Acme/x", "x"):
        with pytest.raises(openai.NotFoundError) as caught:
            ana.models.delete(name)
        words.add(caught.value.message.replace(name, "NAME"))
        with pytest.raises(openai.NotFoundError):
            ana.fine_tuning.checkpoints.permissions.create(name, project_ids=["beta"])
        with pytest.raises(openai.NotFoundError):
            list(ana.fine_tuning.checkpoints.permissions.list(name))
        with pytest.raises(openai.NotFoundError):
            ana.fine_tuning.checkpoints.permissions.delete("cp_1", fine_tuned_model_checkpoint=name)
    assert len(words) == 1
    assert left(registry, "beta/notes") == [1]
    with pytest.raises(openai.BadRequestError, match="base itself"):
        ana.models.delete("tiny")
    with pytest.raises(openai.BadRequestError, match="Name its number"):
        ana.models.delete("acme/legal:latest")
    with pytest.raises(openai.AuthenticationError):
        ana.with_options(api_key="sm-wrong").models.delete("acme/legal")
    with pytest.raises(openai.PermissionDeniedError, match="publish"):
        client("acme", "infer").models.delete("acme/legal")  # type: ignore[call-arg]
    assert left(registry, "acme/legal") == [1, 2, 3]
    assert client("admin").models.delete("beta/notes").deleted, "the operator may"


@pytest.mark.parametrize("model", ["acme/legal", "acme/legal:prod", "acme/permissions"])
def test_a_checkpoint_is_shared_and_no_longer(model: str, client: Client) -> None:
    permissions = client("acme").fine_tuning.checkpoints.permissions
    created = list(permissions.create(model, project_ids=["gamma", "beta"]))
    assert {each.project_id for each in created} == {"beta", "gamma"}
    assert {each.object for each in created} == {"checkpoint.permission"}
    again = list(permissions.create(model, project_ids=["beta", "beta"]))
    assert [each.id for each in again] == [each.id for each in created if each.project_id == "beta"]
    assert {each.id for each in permissions.list(model, limit=1)} == {each.id for each in created}, "page by page"
    up, down = (list(permissions.list(model, order=order)) for order in ("ascending", "descending"))
    assert [each.id for each in up] == [each.id for each in reversed(down)]
    (beta,) = permissions.list(model, project_id="beta")
    gone = permissions.delete(beta.id, fine_tuned_model_checkpoint=model)
    assert (gone.id, gone.deleted, gone.object) == (beta.id, True, "checkpoint.permission")
    assert [each.project_id for each in permissions.list(model)] == ["gamma"]
    with pytest.raises(openai.NotFoundError, match="no permission"):
        permissions.delete(beta.id, fine_tuned_model_checkpoint=model)
    with pytest.raises(openai.NotFoundError, match="'absent', 'none'"):
        client("admin").fine_tuning.checkpoints.permissions.create(model, project_ids=["beta", "none", "absent"])
    assert [each.project_id for each in permissions.list(model)] == ["gamma"], "all or none"
    (untold,) = permissions.create(model, project_ids=["none"])
    assert untold.project_id == "none", "which tenants there are is told the operator alone"


def test_a_permission_belongs_to_its_model(client: Client) -> None:
    permissions = client("acme").fine_tuning.checkpoints.permissions
    (made,) = permissions.create("acme/legal:1", project_ids=["beta"])
    for other in ("acme/legal:2", "acme/legal"):
        assert list(permissions.list(other)) == []
        with pytest.raises(openai.NotFoundError):
            permissions.delete(made.id, fine_tuned_model_checkpoint=other)
    client("acme").models.delete("acme/legal:1")
    assert permissions.delete(made.id, fine_tuned_model_checkpoint="acme/legal:1").deleted, "also of a deleted model"


@pytest.mark.parametrize(
    "body", [{}, {"project_ids": []}, {"project_ids": "beta"}, {"project_ids": ["b\0"]}, {"project_ids": ["x"], "y": 1}]
)
def test_a_bad_grant_is_refused(body: dict[str, Any], client: Client) -> None:
    ana = client("acme")
    answer = httpx.post(
        f"{ana.base_url}fine_tuning/checkpoints/acme%2Flegal/permissions",
        json=body,
        headers={"authorization": f"Bearer {ana.api_key}"},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert "project_ids" in answer.json()["error"]["message"] or "y" in answer.json()["error"]["message"]


@pytest.mark.parametrize("id_", ["cp_\0", "%00", "a" * 5000, "cp_1/../x", "é"])
def test_odd_ids_are_not_found(id_: str, client: Client) -> None:
    permissions = client("acme").fine_tuning.checkpoints.permissions
    with pytest.raises(openai.NotFoundError):
        permissions.delete(id_, fine_tuned_model_checkpoint="acme/legal")
    with pytest.raises(openai.NotFoundError):
        list(permissions.list("acme/legal", after=id_))
    with suppress(openai.BadRequestError):  # which is said of what no tenant can be called
        assert list(permissions.list("acme/legal", project_id=id_)) == []


def test_nothing_is_granted_for_what_is_gone(client: Client, registry: Registry) -> None:
    registry.yank("acme/permissions:1", "gone")
    with pytest.raises(NotFound):
        registry.resolve("acme/permissions")
    with pytest.raises(openai.NotFoundError):
        client("acme").fine_tuning.checkpoints.permissions.create("acme/permissions", project_ids=["beta"])
