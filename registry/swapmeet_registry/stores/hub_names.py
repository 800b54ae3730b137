"""Which repository of an organization an adapter is kept in.

    ORGANIZATION/NAME               the adapters of the tenant that goes by the organization's name
    ORGANIZATION/TENANT.NAME        the others
    ORGANIZATION/adapter-HEX        whatever a Hub would not take in one of these forms

No two adapters share a repository: the first form has no dot, the second is cut at its first dot, since the tenants
in it have none, and the third is a SHA-256 (its first 160 bits) of TENANT/NAME.
"""

import hashlib
import re

from swapmeet_registry.errors import InvalidName
from swapmeet_registry.names import AdapterName

MAX_NAME = 96
"""Characters that a Hub allows in a repository's name."""

_ORGANIZATION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HASHED = re.compile(r"adapter-[0-9a-f]{40}")


def repository_name(organization: str, adapter: AdapterName) -> str:
    """The repository's name, without the organization."""
    own = adapter.tenant == organization.lower()
    if own and "." not in adapter.name and not _HASHED.fullmatch(adapter.name) and _allowed(adapter.name):
        return adapter.name
    both = f"{adapter.tenant}.{adapter.name}"
    if "." not in adapter.tenant and _allowed(both):
        return both
    return f"adapter-{hashlib.sha256(str(adapter).encode()).hexdigest()[:40]}"


def adapter_name(organization: str, repository: str) -> AdapterName | None:
    """The adapter that belongs into a repository, or None where its name does not say."""
    tenant, dot, name = repository.partition(".")
    try:
        adapter = AdapterName(tenant, name) if dot else AdapterName(organization.lower(), repository)
    except InvalidName:
        return None
    return adapter if repository_name(organization, adapter) == repository else None


def is_organization(text: str) -> bool:
    """Whether an organization or a user could go by this name."""
    return _ORGANIZATION.fullmatch(text) is not None and _allowed(text)


def _allowed(name: str) -> bool:
    return len(name) <= MAX_NAME and "--" not in name and ".." not in name and not name.endswith(".git")
