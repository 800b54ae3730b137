"""The seam to boto3: its errors become the registry's, one sentence each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as S3ConnectionError

from swapmeet_registry.errors import Refused, RegistryError, StoreDenied, StoreError, StoreFull

NETWORK_ERRORS = (S3ConnectionError, HTTPClientError, IncompleteReadError)
"""What says nothing of whether a request arrived."""

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between attempts at a write that is told to try again, and at a download that breaks off."""

_CLOCK = ("RequestTimeTooSkewed", "RequestExpired")
_FULL = ("EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "XAmzStorageFull", "InsufficientStorage")


@contextmanager
def s3_errors(bucket: str) -> Iterator[None]:
    """Turn what boto3 raises about a bucket into a `StoreError` that says what to do."""
    try:
        yield
    except RegistryError:
        raise
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreDenied(
            f"There are no credentials for the S3 bucket {bucket}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except ClientError as error:
        raise _refusal(bucket, error) from error
    except NETWORK_ERRORS as error:
        raise StoreError(
            f"Can not reach S3 at {endpoint()} for the bucket {bucket}. Check AWS_ENDPOINT_URL and the network."
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"S3 at {endpoint()} can not be used ({error}). Check the AWS settings.") from error


def status(error: ClientError) -> int:
    """The HTTP status of an error answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def missing(error: ClientError) -> bool:
    """Whether an error answer says that there is no such object."""
    return error.response["Error"]["Code"] in ("NoSuchKey", "404", "NotFound")


def _refusal(bucket: str, error: ClientError) -> StoreError | Refused:
    code = error.response.get("Error", {}).get("Code", "")
    if code == "NoSuchBucket":
        return StoreError(f"There is no bucket {bucket} at {endpoint()}. Create it, or name another.")
    if code in _CLOCK:
        return StoreDenied(
            f"S3 at {endpoint()} refuses requests for the bucket {bucket} because this machine's clock differs from "
            f"its own by many minutes ({code}). Set the clock right."
        )
    if status(error) in (401, 403):
        return StoreDenied(
            f"S3 at {endpoint()} refuses these credentials for the bucket {bucket} ({code}). Check "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do."
        )
    if code == "BadDigest":
        return Refused("A file changed while it was published. Push again when nothing writes to it.")
    if code in _FULL or status(error) == 507:
        return StoreFull(f"The bucket {bucket} at {endpoint()} is full ({code}). Free some space and try again.")
    message = error.response.get("Error", {}).get("Message", "").rstrip(".")
    return StoreError(f"S3 at {endpoint()} failed on the bucket {bucket}: {message} ({code or status(error)}).")


def endpoint() -> str:
    """The address that the environment names, for messages."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
