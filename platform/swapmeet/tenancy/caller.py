"""Who asks: what is known of a request's sender once its key was found."""

import re
from dataclasses import dataclass, field

OPERATOR = "admin"
"""The tenant of whoever runs the server. With the scope `admin`, its keys may do and see everything."""

KEY_PREFIX = "sm-"
READERS = ("admin", "publish", "train")
"""Scopes that `read` comes with."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may use; None is without limit."""

    concurrent_runs: int | None = None
    gpu_seconds_a_day: int | None = None
    stored_bytes: int | None = None
    tokens_a_minute: int | None = None
    requests_a_minute: int | None = None
    stored_versions: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant, by one of its keys.

    Args:
        tenant: its name.
        key: the key's id, such as `key-5f0c…`; never the key itself.
        scopes: what the key may do.
        limits: the tenant's.
        shared: models of other tenants, by the names that these shared them under.
        suspended: the tenant may do nothing until the operator lets it.
        request: the id of the request that asks.
    """

    tenant: str
    key: str
    scopes: frozenset[str]
    limits: Limits = field(default=Limits(), compare=False)
    shared: frozenset[str] = field(default=frozenset(), compare=False)
    suspended: bool = False
    request: str = field(default="", compare=False)

    @property
    def operator(self) -> bool:
        """Whether it runs the server."""
        return self.tenant == OPERATOR and "admin" in self.scopes

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; the operator's has all, and whoever may change things may read them."""
        reads = scope == "read" and not self.scopes.isdisjoint(READERS)
        return reads or scope in self.scopes or self.operator


_SECRET = re.compile(f"({KEY_PREFIX}|whsec_)[A-Za-z0-9_+/=-]{{16,}}")


def without_keys(text: str) -> str:
    """A text that is to be kept, without the keys and webhooks' secrets that a client sent where they do not belong."""
    return _SECRET.sub(r"\1***", text)
