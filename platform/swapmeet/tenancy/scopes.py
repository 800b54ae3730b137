"""What a key may be allowed to do, and roles, which are sets of it."""

from collections.abc import Iterable

SCOPES = {
    "infer": "ask models for answers",
    "read": "see what the tenant has: files, jobs, models, usage",
    "train": "upload files and run jobs",
    "publish": "publish, tag and withdraw adapters",
    "admin": "make and revoke the tenant's keys, and read its audit log",
    "metrics": "read the server's metrics; only the operator gives it",
}
ROLES = {
    "owner": frozenset({"admin", "infer", "publish", "read", "train"}),
    "developer": frozenset({"infer", "publish", "read", "train"}),
    "application": frozenset({"infer"}),
    "reader": frozenset({"read"}),
}
"""Accepted wherever scopes are; a key holds the scopes, so it does not change with its role."""


def expand(names: Iterable[str]) -> frozenset[str]:
    """The scopes that scopes and roles come to.

    Raises:
        ValueError: some are neither, or there are none; the message names all of them.
    """
    wanted = sorted(set(names))
    if unknown := [name for name in wanted if name not in SCOPES and name not in ROLES]:
        raise ValueError(
            f"{', '.join(map(repr, unknown))}: no such scope or role. Scopes are {', '.join(SCOPES)}; "
            f"roles are {', '.join(ROLES)}."
        )
    if not wanted:
        raise ValueError(
            f"a key needs a scope or a role. Scopes are {', '.join(SCOPES)}; roles are {', '.join(ROLES)}."
        )
    return frozenset().union(*(ROLES.get(name, {name}) for name in wanted))
