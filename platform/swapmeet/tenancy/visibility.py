"""Whose adapters a caller may know of. What is not visible does not exist for it: the same answer, word for word."""

from swapmeet.tenancy.caller import Caller


def visible(caller: Caller, adapter_name: str) -> bool:
    """Whether a caller may see and use an adapter.

    Args:
        caller: who asks.
        adapter_name: `TENANT/NAME`, with or without a version; what was shared is visible as it was shared.
    """
    owner = adapter_name.partition("/")[0]
    return owner == caller.tenant or caller.operator or adapter_name in caller.shared
