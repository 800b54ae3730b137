"""Who may do what, how much of it, and what was done.

    caller.py          who asks: tenant, key, scopes
    scopes.py          what keys may be allowed, and roles
    keys.py            API keys, kept as hashes
    operator_key.py    the first key
    tenants.py         tenants, their shares and limits
    rates.py           requests and tokens a minute, in memory
    quotas.py          what may be stored, and is; stocktaking.py counts the published adapters of it
    usage.py           the ledger in SQL, ledger.py what of it is in memory, condensing.py what of it is old
    inserting.py       upserts on either database
    audit.py           who did what to what; audit_chain.py holds each entry to the one before
    tenancy.py         all of it over one database

Where it is decided whether a request may pass is `swapmeet.gateway.authority`; whose adapters a caller may see,
`swapmeet.adapter_access`.
"""

from swapmeet.tenancy.caller import OPERATOR, Caller, Limits
from swapmeet.tenancy.tenancy import Tenancy

__all__ = ["OPERATOR", "Caller", "Limits", "Tenancy"]
