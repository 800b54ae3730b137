"""Fetch a base from the Hugging Face Hub at a fixed commit, every weight file checked against the Hub's SHA-256."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swapmeet_registry.errors import BaseInvalid, BaseNotFound, Corrupt, StoreDenied, StoreError

PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "*.jinja",
    "README.md",
]
PATTERNS += [
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch_hub_base(repository: str, revision: str | None, folder: Path, tell: Callable[[str], None]) -> str:
    """Download a model's safetensors, config and tokenizer into `folder`.

    Returns:
        The commit that the revision stood for, 40 hex digits.

    Raises:
        BaseNotFound: no such repository or revision, or the Hub can't be reached.
        StoreDenied: the repository is gated or private.
        BaseInvalid: it holds no safetensors weights.
        Corrupt: a downloaded file is not what the Hub lists.
    """
    from huggingface_hub import HfApi, snapshot_download

    with hub_errors(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
            raise BaseInvalid(f"{repository} holds no safetensors weights. Choose a revision or a copy that does.")
        commit = str(info.sha)
        tell(f"Downloading {repository} at {commit[:12]}")
        snapshot_download(repository, revision=commit, local_dir=folder, allow_patterns=PATTERNS)
    for file in info.siblings or []:
        if file.lfs and (folder / file.rfilename).is_file():
            _check(folder / file.rfilename, file.lfs.sha256)
    return commit


@contextmanager
def hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Map huggingface_hub's errors to ours; the most specific first."""
    from huggingface_hub import errors as hub

    http_error: Any = hub.HfHubHTTPError.__mro__[1]  # of whichever HTTP library huggingface_hub is built on

    wanted = f"{repository}@{revision}" if revision else repository
    try:
        yield
    except hub.GatedRepoError as error:
        raise StoreDenied(f"{wanted} is gated. Accept its terms on its page and set HF_TOKEN.") from error
    except hub.RevisionNotFoundError as error:
        raise BaseNotFound(f"{repository} has no revision {revision!r}. Name a branch, tag or commit.") from error
    except hub.RepositoryNotFoundError as error:
        raise BaseNotFound(f"There is no model {repository} on the Hub, or HF_TOKEN may not read it.") from error
    except hub.HfHubHTTPError as error:
        raise StoreError(f"The Hub failed for {wanted}: {error}. Try again later.") from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, http_error) as error:
        raise BaseNotFound(f"The Hub can not be reached for {wanted}. Check the network and HF_ENDPOINT.") from error
    except hub.HFValidationError as error:
        raise BaseNotFound(f"{repository!r} is not a Hub id. Write it as OWNER/NAME.") from error


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise Corrupt(f"{path.name} has SHA-256 {found}, the Hub lists {sha256}. Fetch the base again.")
