"""Signatures on a platform: its own runs' adapters bear one, and what must be there for that is looked at first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swapmeet.database import Database
from swapmeet.database.tables import JobRow
from swapmeet.errors import SettingsError
from swapmeet.gateway.errors import describe_error
from swapmeet.jobs.publishing import Publisher
from swapmeet.preparation import prepare
from swapmeet.settings import Settings, load_settings
from swapmeet_registry import Provenance, Registry, SignatureInvalid, SigningKeyInvalid, open_store
from swapmeet_registry.bases import BaseLibrary
from swapmeet_registry.signing.keys import make_keys
from swapmeet_training.attempts.run_storage import RunStorage
from swapmeet_training.attempts.telling import Finished


def test_a_run_s_adapter_is_signed(
    database: Database,
    job_row: Callable[..., JobRow],
    tiny_llama: Path,
    random_lora: Callable[..., Path],
    tmp_path: Path,
) -> None:
    private, public, key = make_keys(tmp_path / "keys")
    trusting: dict[str, Any] = {"signatures": "require", "trusted_keys": public}
    settings = Settings(home=tmp_path / "home", signing_key=private, **trusting)
    base = BaseLibrary(settings.folder).add(str(tiny_llama))
    adapter = random_lora(tiny_llama, tmp_path / "adapter")
    Provenance(base=base.fingerprint).write(adapter)
    job = job_row(id="ftjob-1", adapter="acme/dates", base=base.name)
    runs = RunStorage(open_store(settings.storage_url), job.id)
    finished = Finished(runs.key(1, "adapter"), {"loss": 1.0}, 2, 200)
    runs.keep(finished.adapter, adapter, {})
    publisher = Publisher(settings, database)
    made = [publisher.result(job, finished).version for _ in range(2)]
    assert made[0] is not None
    assert made[0] == made[1]
    registry = Registry(settings.registry_url, settings.trust)
    assert [each.key for each in registry.signatures(made[0])] == [key.id]
    registry.pull(made[0], tmp_path / "pulled")
    unsigned = Publisher(Settings(home=tmp_path / "home", **trusting), database)
    other = unsigned.result(job_row(id="ftjob-2", adapter="acme/dates", base=base.name), finished)
    assert other.version is not None
    with pytest.raises(SignatureInvalid, match=r"^acme/dates:2 bears no good signature"):
        registry.pull(other.version, tmp_path / "unsigned")


def test_what_signs_and_is_trusted_is_looked_at_before_anything_starts(database: Database, tmp_path: Path) -> None:
    trusting: dict[str, Any] = {"signatures": "warn", "trusted_keys": tmp_path / "missing"}
    with pytest.raises(SigningKeyInvalid, match=r"no folder of trusted keys"):
        prepare(Settings(home=tmp_path / "home", **trusting))
    with pytest.raises(SigningKeyInvalid, match=r"none\.pem can not be read"):
        Publisher(Settings(home=tmp_path / "home", signing_key=tmp_path / "none.pem"), database)
    with pytest.raises(SettingsError, match=r"signatures can not be checked \(require\) without trusted_keys"):
        load_settings(home=tmp_path / "home", signatures="require")


def test_an_unsigned_adapter_is_forbidden_over_http() -> None:
    status, body, _ = describe_error(SignatureInvalid("Have it signed."))
    assert (status, body["error"]["code"], body["error"]["type"]) == (403, "signature_invalid", "permission_error")
