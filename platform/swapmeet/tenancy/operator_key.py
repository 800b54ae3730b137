"""The operator's first key, without which nobody could make others."""

from pathlib import Path

from swapmeet.private_file import write_private
from swapmeet.tenancy.caller import OPERATOR
from swapmeet.tenancy.tenancy import Tenancy


def operator_key(tenancy: Tenancy, home: Path) -> str:
    """The operator's key, made at the first start and kept in `HOME/admin.key`, readable by its owner only.

    One that was revoked or has expired is replaced at the next start, so that nobody is shut out for good.
    """
    path = home / "admin.key"
    if path.is_file():
        key = path.read_text(errors="replace").strip()
        caller = tenancy.keys.caller_of(key)
        if caller is not None and caller.operator:
            return key
    tenancy.tenants.ensure(OPERATOR)
    key = tenancy.keys.create(OPERATOR, ["owner"], name="admin.key").key
    write_private(path, key, replace=True)
    return key
