"""From a request to the row of a job."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from swapmeet.database.tables import FileRow, JobRow
from swapmeet.errors import NotFound, RequestRefused
from swapmeet.files import Files
from swapmeet.files.files import present
from swapmeet.fine_tuning.hyperparameters import run_settings
from swapmeet.fine_tuning.models import Models, Origin, adapter_name, inherit
from swapmeet.fine_tuning.request import JobRequest
from swapmeet.fine_tuning.settling import require_usable, settle
from swapmeet.ids import made_at, new_id
from swapmeet.integrations import check_integrations
from swapmeet.settings import Settings
from swapmeet_registry import InvalidName, canonical
from swapmeet_registry import NotFound as NoModel


class JobRequests:
    """Turns requests into rows, which are not yet in the database; all that can be refused is refused here.

    Args:
        files: what tenants uploaded.
        models: what can be trained.
        settings: the server's, which say what integrations it can serve.
        clock: gives the present moment, in UTC.
    """

    def __init__(
        self, files: Files, models: Models, settings: Settings, clock: Callable[[], datetime] = present
    ) -> None:
        self.files, self.models, self.settings, self.clock = files, models, settings, clock

    def row(
        self,
        request: JobRequest,
        tenant: str,
        key: str,
        visible: Callable[[str], bool],
        idempotency_key: str | None = None,
        origin: Origin | None = None,
    ) -> JobRow:
        """A new job, validating its files; settled already where they have been checked.

        Args:
            request: what is wanted.
            tenant: whose job it is.
            key: the id of the API key that asked.
            visible: whether the caller may go on from an adapter.
            idempotency_key: tells jobs apart that are wanted alike; without it, what is asked twice is meant once.
            origin: what the model's name means, where that was looked up before.

        Raises:
            RequestRefused: there is no such model, or a file, the suffix or a name can not be used; every mistake is
                told.
        """
        mistakes: list[RequestRefused] = []
        origin = origin or self._origin(request.model, visible, mistakes)
        training = self._file("training_file", request.training_file, tenant, request.kind, mistakes)
        validation = self._file("validation_file", request.validation_file, tenant, request.kind, mistakes)
        now = self.clock()
        job_id = new_id("ftjob-", now)
        asked = request.lora.model_dump(mode="json")
        lora, name = asked, ""
        try:
            lora = inherit(asked, origin)
        except RequestRefused as error:
            mistakes.append(error)
        try:
            name = adapter_name(tenant, origin.base, job_id, request.suffix, request.lora.name)
        except RequestRefused as error:
            mistakes.append(error)
        unserved = check_integrations(request.integrations, self.settings)
        mistakes += [RequestRefused(mistake, "integrations") for mistake in unserved]
        _raise(mistakes)
        row = JobRow(
            id=job_id,
            tenant=tenant,
            created_by=key,
            created_at=made_at(job_id) or now,
            request_digest=digest_of(request, tenant, idempotency_key),
            model=request.model,
            base=origin.base,
            adapter=name,
            parent=origin.parent,
            training_file=request.training_file,
            validation_file=request.validation_file,
            method=request.kind,
            seed=secrets.randbelow(1 << 31) if request.seed is None else request.seed,
            hyperparameters=request.asked,
            lora=lora,
            settings={},
            resources=request.lora.resources.model_dump(exclude_none=True),
            plan={},
            job_metadata=dict(request.metadata),
            integrations=[each.model_dump(mode="json") for each in request.integrations],
            suffix=request.suffix,
            priority=request.lora.priority,
            deadline=request.lora.deadline,
            state="validating_files",
        )
        row.settings = run_settings(row.hyperparameters, row.lora, row.method, row.seed)
        checked = [file for file in (training, validation) if file is not None]
        if training is not None and all(file.status == "processed" for file in checked):
            settle(row, training, validation)
        return row

    def _origin(self, model: str, visible: Callable[[str], bool], mistakes: list[RequestRefused]) -> Origin:
        try:
            return self.models.find(model, visible)
        except (NoModel, InvalidName, RequestRefused) as error:
            mistakes.append(RequestRefused(str(error), "model", error.code))
            return Origin("")

    def _file(
        self, field: str, file_id: str | None, tenant: str, method: str, mistakes: list[RequestRefused]
    ) -> FileRow | None:
        if file_id is None:
            return None
        try:
            file = self.files.get(tenant, file_id)
            require_usable(field, file, method)
        except NotFound as error:
            mistakes.append(RequestRefused(f"{field}: {error}", field))
        except RequestRefused as error:
            mistakes.append(error)
        else:
            return file
        return None


def digest_of(request: JobRequest, tenant: str, idempotency_key: str | None) -> str:
    """SHA-256 in hex, the same for requests that mean the same."""
    meant: dict[str, Any] = {
        "tenant": tenant,
        "request": request.model_dump(mode="json"),
        "method": request.kind,
        "idempotency_key": idempotency_key,
    }
    return hashlib.sha256(canonical.encode(meant)).hexdigest()


def _raise(mistakes: list[RequestRefused]) -> None:
    if mistakes:
        first = mistakes[0]
        raise RequestRefused(" ".join(map(str, mistakes)), first.param, first.code)
