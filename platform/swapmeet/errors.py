"""Every error the platform raises itself.

    PlatformError
    ├── SettingsError    (ValueError)         a setting is unknown or out of range
    ├── PortInUse        (OSError)            another process listens there
    ├── NotConfigured    (LookupError)        no server URL or API key to talk to one with
    ├── ServerFailed     (RuntimeError)       the server did not come up
    ├── DatabaseFailed   (OSError)            the database can not be opened, read or written
    ├── LeaseLost        (RuntimeError)       another instance leads now
    ├── AlreadyRunning   (RuntimeError)       the same fine-tune or server is under way
    ├── NotFound         (LookupError)        there is no such thing, or it is another tenant's
    ├── Conflict         (RuntimeError)       it exists already, and differs, or is in no state for this
    ├── Forbidden        (PermissionError)    the caller may not do this
    ├── QuotaExceeded    (PermissionError)    a tenant would use more than it may
    ├── RateLimited      (PermissionError)    a tenant asks too often; has the `headers` that say when it may again
    ├── JobNotFound      (LookupError)        the tenant has no such job, event or checkpoint
    ├── WrongState       (RuntimeError)       a job can not be cancelled, paused or resumed as it stands
    ├── PlanningFailed   (RuntimeError)       the process that plans a job ended before it had
    ├── RequestRefused   (ValueError)         a request that can not be served; has `param`, the field
    ├── TooLarge         (ValueError)         a file or a part is over its limit
    ├── SecretKeyWrong   (ValueError)         the platform's key is none, or not the one that secrets lie under
    ├── WebhookRefused   (ValueError)         a webhook's URL or events can not be used, or there are too many
    ├── WebhookFailed    (OSError)            a webhook's URL did not take an event
    ├── AuditBroken      (ValueError)         an exported audit log is not whole, or was changed
    ├── SinkFailed       (OSError)            a system that metrics are sent to does not take them
    └── ApiError         (RuntimeError)       the server answered with an error; has `status` and `code`

To add one: derive from `PlatformError` and one standard class, give it a `code`, say in the message what to
do, and keep it picklable.
"""


class PlatformError(Exception):
    """Base of all platform errors; `code` is what the HTTP API answers."""

    code = "platform_error"


class SettingsError(PlatformError, ValueError):
    """A setting is unknown or has a value that can not be used."""

    code = "invalid_settings"


class PortInUse(PlatformError, OSError):
    """The port to listen on is taken."""

    code = "port_in_use"


class NotConfigured(PlatformError, LookupError):
    """A command that talks to a server knows no URL or key."""

    code = "not_configured"


class ServerFailed(PlatformError, RuntimeError):
    """The server did not become ready."""

    code = "server_failed"


class DatabaseFailed(PlatformError, OSError):
    """The database can not be opened, read or written."""

    code = "database_unavailable"


class LeaseLost(PlatformError, RuntimeError):
    """Who writes as the leader is it no more."""

    code = "lease_lost"


class AlreadyRunning(PlatformError, RuntimeError):
    """The same fine-tune, or the same server, is under way."""

    code = "already_running"


class NotFound(PlatformError, LookupError):
    """There is no such thing, or it is another tenant's, which is told in the same words."""

    code = "not_found"


class Conflict(PlatformError, RuntimeError):
    """It exists already and is not what was asked for, or its state does not allow what was asked for."""

    code = "conflict"


class Forbidden(PlatformError, PermissionError):
    """The caller may do such things, but not this one."""

    code = "permission_denied"


class QuotaExceeded(PlatformError, PermissionError):
    """A tenant would use more than its quota; trying again does not help."""

    code = "insufficient_quota"


class RateLimited(PlatformError, PermissionError):
    """A tenant asks too often; `headers` say when it may ask again."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message, headers or {})
        self.headers: dict[str, str] = headers or {}

    def __str__(self) -> str:
        return str(self.args[0])


class JobNotFound(PlatformError, LookupError):
    """The tenant has no such fine-tuning job, or the job no such event or checkpoint."""

    code = "job_not_found"


class WrongState(PlatformError, RuntimeError):
    """A job can not be cancelled, paused or resumed as it stands."""

    code = "invalid_job_state"


class PlanningFailed(PlatformError, RuntimeError):
    """The process that plans a job died; the same may be planned again."""

    code = "planning_failed"


class RequestRefused(PlatformError, ValueError):
    """A request that can not be served as it is; `param` names its first wrong field, `code` the kind of mistake."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message, param, code)
        self.param, self.code = param, code

    def __str__(self) -> str:
        return str(self.args[0])


class TooLarge(PlatformError, ValueError):
    """A file or a part is over its limit."""

    code = "request_too_large"


class SecretKeyWrong(PlatformError, ValueError):
    """The platform's key is not a key, or not the one that its secrets were written under."""

    code = "secret_key_wrong"


class WebhookRefused(PlatformError, ValueError):
    """A webhook's URL can not be used, or the tenant has as many webhooks as it may."""

    code = "webhook_refused"


class WebhookFailed(PlatformError, OSError):
    """A webhook's URL did not take an event; the message names its host at most, and never its path or password."""

    code = "webhook_failed"


class SinkFailed(PlatformError, OSError):
    """A system that a job's metrics are sent to does not take them; the message goes into the job's events."""

    code = "sink_failed"


class AuditBroken(PlatformError, ValueError):
    """An exported audit log is not whole, or an entry was changed."""

    code = "audit_broken"


class ApiError(PlatformError, RuntimeError):
    """The server's answer was an error: HTTP `status` (0: no answer), its `code` and message."""

    def __init__(self, message: str, status: int = 0, code: str = "api_error") -> None:
        super().__init__(message, status, code)
        self.status, self.code = status, code

    def __str__(self) -> str:
        return str(self.args[0])
