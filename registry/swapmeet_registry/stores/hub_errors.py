"""The seam to huggingface_hub: its errors become the registry's, and what may be sent twice is sent again."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub import errors as hub
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined] # loaded when asked for

from swapmeet_registry.errors import RegistryError, StoreDenied, StoreError, StoreFull

Result = TypeVar("Result")

PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between attempts."""

LONGEST_PAUSE = 60.0
"""Seconds that a Hub may ask to wait; where it asks for more, the caller is told."""

HTTP_ERROR: Any = hub.HfHubHTTPError.__mro__[1]
"""What the HTTP library raises that huggingface_hub is built on: its own errors derive from this one."""

UNCERTAIN = (HTTP_ERROR, json.JSONDecodeError)
"""What may be raised by a request that took place."""


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT as it is now, where huggingface_hub reads it once."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def patiently(call: Callable[[], Result]) -> Result:
    """Make a request that may be sent twice, and again as long as the Hub is away, busy or failing."""
    for pause in PAUSES:
        try:
            return call()
        except UNCERTAIN as error:
            wait = waiting(error, pause)
            if wait is None:
                raise
            time.sleep(wait)
    return call()


def waiting(error: Exception, pause: float) -> float | None:
    """Seconds until a request is worth another attempt, or None if it is not."""
    if not isinstance(error, hub.HfHubHTTPError):
        return pause
    if status(error) == 429 or status(error) == 408 or status(error) >= 500:
        asked = max(pause, _asked(error))
        return asked if asked <= LONGEST_PAUSE else None
    return None


def undecided(error: Exception) -> bool:
    """Whether a commit that failed with this may have taken place, or failed because another did."""
    return not isinstance(error, hub.HfHubHTTPError) or status(error) in (408, 409, 412, 429) or status(error) >= 500


def status(error: hub.HfHubHTTPError) -> int:
    """The HTTP status of an error answer."""
    return int(error.response.status_code)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repository or organization into a `StoreError` that says what to do."""
    try:
        yield
    except RegistryError:
        raise
    except (HTTP_ERROR, hub.OfflineModeIsEnabled, RuntimeError, ValueError) as error:
        wrapped = error.__cause__ if type(error) is RuntimeError else None  # as an upload's errors are
        origin = wrapped if isinstance(wrapped, HTTP_ERROR) else error
        token = get_token()
        raise _translated(what, origin) from (None if token and token in repr(error) + str(error) else error)


def _translated(what: str, error: Exception) -> StoreError:
    if isinstance(error, hub.GatedRepoError):
        return StoreDenied(f"{what} is gated. Accept its terms at {endpoint()}/{what} and set HF_TOKEN.")
    if isinstance(error, hub.RepositoryNotFoundError):
        return StoreDenied(
            f"There is no {what} at {endpoint()} that this token may write to or read. Check its name, and set "
            "HF_TOKEN or run `hf auth login`: what is private looks as if it were missing."
        )
    if isinstance(error, hub.OfflineModeIsEnabled):
        return StoreError(f"{what} can not be reached in offline mode. Unset HF_HUB_OFFLINE.")
    if isinstance(error, hub.HfHubHTTPError):
        return _refusal(what, error)
    if isinstance(error, UNCERTAIN):
        return StoreError(f"Can not reach the Hub at {endpoint()} for {what}. Check HF_ENDPOINT and the network.")
    return StoreError(f"The Hub at {endpoint()} does not take {what} as it is: {_clean(str(error))}.")


def _refusal(what: str, error: hub.HfHubHTTPError) -> StoreError:
    said = _clean(error.server_message or "")
    because = f"{status(error)}: {said}" if said else str(status(error))
    if status(error) in (402, 413, 507) or "storage" in said.lower():
        return StoreFull(f"The Hub at {endpoint()} has no space for {what} ({because}). Free some, or extend the plan.")
    if status(error) == 401:
        return StoreDenied(
            f"The Hub at {endpoint()} refuses this token for {what} ({because}). Check HF_TOKEN, or run "
            "`hf auth login`."
        )
    if status(error) == 403:
        return StoreDenied(
            f"The Hub at {endpoint()} does not allow this for {what} ({because}). Use a token with write access to it."
        )
    if status(error) == 429:
        wait = f"{_asked(error):.0f} seconds" if _asked(error) else "a while"
        return StoreError(f"The Hub at {endpoint()} takes no more requests for {what} now (429). Wait {wait}.")
    return StoreError(f"The Hub at {endpoint()} failed on {what} ({because}). Try again later.")


def _asked(error: hub.HfHubHTTPError) -> float:
    """Seconds that an answer asks to wait; 0 where it does not."""
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers) if status(error) == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = headers.get("Retry-After", "")
    return float(after) if after.isdigit() else 0.0


def _clean(text: str) -> str:
    """A foreign message as part of a sentence, without the token, whatever echoed it."""
    line = " ".join(text.split()).rstrip(".")
    token = get_token()
    return (line.replace(token, "…") if token else line)[:500]
