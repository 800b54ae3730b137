"""The whole API under what schemathesis makes of its own description: no failure, and no key where none belongs.

Every operation gets requests as the description has them and requests that break it, of a developer and of the
operator; half of them name things that are there.
"""

import json
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from sqlalchemy import select

from swapmeet.database.tables import Table
from swapmeet.gateway.request_trace import log, log_to
from swapmeet.tenancy import OPERATOR

EXAMPLES = 5
"""Requests of each operation, caller and kind."""
DEVELOPER = "acme"
URL = "http://testserver"
ORDER = ["get", "post", "put", "delete"]
"""What is deleted is looked at before."""


def known(own: dict[str, str]) -> dict[str, str]:
    """By parameter or field: what a tenant has."""
    same = {name: own[name] for name in ("key", "model", "permission", "webhook")}
    same |= {"owner": own["tenant"], "adapter": "legal", "ref": "1", "alias": "prod", "upload": own["adapter_upload"]}
    named = {f"{kind}_id": own[kind] for kind in ("file", "job", "sweep", "upload")}
    return same | named | {"name": own["tenant"], "delivery": own["webhook_delivery"], "training_file": own["file"]}


def send(platform: Any, who: str, case: Any) -> Any:
    """Send a case as `requests` would, byte for byte."""
    kwargs = case.as_transport_kwargs(base_url=URL)
    wanted = {
        name: kwargs[name] for name in ("method", "url", "headers", "params", "json", "data", "files") if name in kwargs
    }
    prepared = requests.Request(**wanted).prepare()
    headers = {name.encode(): str(value).encode("latin-1") for name, value in prepared.headers.items()}
    headers[b"authorization"] = f"Bearer {platform.keys[who]}".encode()
    method, url, content = str(prepared.method), str(prepared.url), prepared.body
    return platform.ask(who, method, url, headers=headers, content=content)


def fuzz(platform: Any, who: str, operation: Any, mode: GenerationMode, ids: dict[str, str]) -> None:
    """Some requests of one operation."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(mode), st.booleans())
    def one(case: Any, at_home: bool) -> None:
        for part in (case.path_parameters, case.body) if at_home else ():
            if isinstance(part, dict):
                part.update({name: ids[name] for name in part if name in ids})
        answer = send(platform, who, case)
        case.validate_response(answer, checks=[not_a_server_error])
        assert answer.status_code not in (401, 422), answer.text
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert error["code"] not in ("internal_error", "http_error"), error

    one()


@pytest.fixture
def logs(platform: Any, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Everything is logged that can be."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("hypothesis").setLevel(logging.WARNING)
    log_to(platform.home / "logs" / "requests.jsonl")
    yield
    for handler in [each for each in log.handlers if isinstance(each, RotatingFileHandler)]:
        log.removeHandler(handler)
        handler.close()


@pytest.mark.slow
@pytest.mark.usefixtures("logs")
def test_nothing_breaks_and_no_key_is_where_none_belongs(platform: Any, caplog: pytest.LogCaptureFixture) -> None:
    platform.add("friend")
    platform.add(DEVELOPER)
    ids = {
        DEVELOPER: known(platform.furnish(DEVELOPER, "friend")),
        OPERATOR: known(platform.furnish(OPERATOR, "friend")),
    }
    ids[OPERATOR]["name"] = DEVELOPER  # suspended in the end, perhaps
    platform.add(DEVELOPER, "developer")
    schema = schemathesis.openapi.from_dict(platform.client.get("/openapi.json").json())
    operations = sorted((each.ok() for each in schema.get_all_operations()), key=lambda each: ORDER.index(each.method))
    assert len(operations) > 60
    for who in (DEVELOPER, OPERATOR):
        for operation in operations:
            takes = operation.path_parameters or operation.query or operation.headers or operation.body
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if takes else (GenerationMode.POSITIVE,):
                fuzz(platform, who, operation, mode, ids[who])

    out_of_place(platform)
    require_no_secrets(platform, caplog)


def out_of_place(platform: Any) -> None:
    """Send secrets as what they are not."""
    for secret in list(platform.secrets):
        for path in ("files", "fine_tuning/jobs", "fine_tuning/sweeps", "webhooks", "models/x", "keys"):
            platform.ask(OPERATOR, "GET", f"/v1/{path}/{secret}")
        platform.ask(OPERATOR, "GET", f"/v1/uploads/{secret}/cancel")
        for path in ("files", "fine_tuning/jobs", "fine_tuning/sweeps", "webhooks", "keys", "audit"):
            platform.ask(OPERATOR, "GET", f"/v1/{path}", params={"after": secret})
        platform.ask(OPERATOR, "GET", "/v1/models", headers={"x-request-id": secret})
        platform.ask(OPERATOR, "DELETE", f"/v1/models/admin/{secret}")
        platform.ask(OPERATOR, "POST", "/v1/fine_tuning/jobs", json={"model": secret, "training_file": secret})


def require_no_secrets(platform: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Search the logs, the database and every file for them."""
    platform.tenancy.flush()
    own = platform.home / "secret.key"
    secrets = [*platform.secrets, own.read_text().strip()]
    assert len([each for each in secrets if each.startswith("sm-")]) > 5
    assert len([each for each in secrets if each.startswith("whsec_")]) > 4

    def rows(session: Any) -> str:
        return "\n".join(str(row) for table in Table.metadata.sorted_tables for row in session.execute(select(table)))

    database = platform.tenancy.database.read(rows)
    assert all(each[-4:] in database for each in secrets if each.startswith("sm-")), (
        "hints are there: the search would find more"
    )
    said = "\n".join(
        f"{each.getMessage()} {each.exc_text or ''}" for each in caplog.records if not each.name.startswith("httpx")
    )
    requests_log = (platform.home / "logs" / "requests.jsonl").read_text().splitlines()
    routes = {json.loads(line)["route"] for line in requests_log}
    assert len(routes) > 40
    assert not [route for route in routes if not route.startswith("/v1/") and route != "unknown"]
    files = [path for path in Path(platform.home).parent.rglob("*") if path.is_file() and path != own]
    for place, text in [("database", database.encode()), ("log", said.encode()), *((p, p.read_bytes()) for p in files)]:
        assert not [each[:9] for each in secrets if each.encode() in text], place
