"""Every error the platform raises itself.

    PlatformError
    ├── SettingsError    (ValueError)         a setting is unknown or out of range
    ├── PortInUse        (OSError)            another process listens there
    ├── NotConfigured    (LookupError)        no server URL or API key to talk to one with
    ├── ServerFailed     (RuntimeError)       the server did not come up
    ├── DatabaseFailed   (OSError)            the database can not be opened, read or written
    ├── AlreadyRunning   (RuntimeError)       the same fine-tune or server is under way
    ├── NotFound         (LookupError)        there is no such thing, or it is another tenant's
    ├── SecretKeyWrong   (ValueError)         the platform's key is none, or not the one that secrets lie under
    ├── WebhookRefused   (ValueError)         a webhook's URL or events can not be used, or there are too many
    ├── WebhookFailed    (OSError)            a webhook's URL did not take an event
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


class AlreadyRunning(PlatformError, RuntimeError):
    """The same fine-tune, or the same server, is under way."""

    code = "already_running"


class NotFound(PlatformError, LookupError):
    """There is no such thing, or it is another tenant's, which is told in the same words."""

    code = "not_found"


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


class ApiError(PlatformError, RuntimeError):
    """The server's answer was an error: HTTP `status` (0: no answer), its `code` and message."""

    def __init__(self, message: str, status: int = 0, code: str = "api_error") -> None:
        super().__init__(message, status, code)
        self.status, self.code = status, code

    def __str__(self) -> str:
        return str(self.args[0])
