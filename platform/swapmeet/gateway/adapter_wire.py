"""What adapters look like over HTTP."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from swapmeet.tenancy.caller import Caller
from swapmeet_registry import Listing, Manifest, Version
from swapmeet_registry.head import Visibility
from swapmeet_registry.origin.lineage import Ancestor
from swapmeet_registry.recalls import Reached
from swapmeet_registry.signing import oms

Reason = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]


class Withdrawal(BaseModel):
    """Why a version is withdrawn; whoever asks for it reads that."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason


class AliasMove(BaseModel):
    """Where an alias is to point, and where it must point now (0: nowhere), if that matters."""

    model_config = ConfigDict(extra="forbid")

    version: int | Annotated[str, Field(min_length=1, max_length=200)]
    expect: Annotated[int, Field(ge=0, le=10**9)] | None = None


class Signing(BaseModel):
    """A signature's document in Base64, and the public key in PEM that it is checked with."""

    model_config = ConfigDict(extra="forbid")

    public_key: Annotated[str, Field(min_length=1, max_length=16_384)]
    bundle: Annotated[str, Field(min_length=1, max_length=(oms.MAX_BUNDLE + 2) // 3 * 4)]


class Sharing(BaseModel):
    """Who may read an adapter: its owner only, also the tenants that are named, or all."""

    model_config = ConfigDict(extra="forbid")

    visibility: Visibility
    tenants: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=1000)] = []


def adapter_object(listing: Listing, caller: Caller) -> dict[str, Any]:
    """An adapter, with its versions; whom it is shared with is told its owner."""
    owner = listing.name.partition("/")[0]
    shared_with = list(listing.shared_with) if caller.operator or caller.tenant == owner else []
    return summary_object(listing) | {
        "versions": [version_object(version) for version in listing.versions],
        "shared_with": shared_with,
    }


def summary_object(listing: Listing) -> dict[str, Any]:
    """An adapter on a list."""
    return {
        "id": listing.name,
        "object": "adapter",
        "owner": listing.name.partition("/")[0],
        "visibility": listing.visibility,
        "aliases": listing.aliases,
        "created_at": listing.versions[0].created_at if listing.versions else None,
        "version_count": len(listing.versions),
    }


def version_object(version: Version) -> dict[str, Any]:
    """A version, and why it was withdrawn, if it was."""
    return {
        "id": str(version),
        "object": "adapter.version",
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "created_at": version.created_at,
        "yanked": version.yank_reason,
        "recalled": version.recalled,
        "deleted": version.deleted,
    }


def server_object(reached: Reached, caller: Caller) -> dict[str, Any]:
    """What a server did about a version that was withdrawn; on which machine it runs is the operator's to know."""
    told = {"object": "adapter.server"} | asdict(reached) | {"tenants": list(reached.tenants)}
    return told if caller.operator else told | {"host": ""}


def described_object(version: Version, manifest: Manifest) -> dict[str, Any]:
    """A version with all that its manifest says, from whose canonical JSON the digest can be computed."""
    return version_object(version) | {"size": manifest.size, "manifest": manifest.model_dump(mode="json")}


def ancestor_object(ancestor: Ancestor) -> dict[str, Any]:
    """A generation of a version, as far as it is there and may be seen."""
    return {
        "object": "adapter.ancestor",
        "ref": ancestor.ref,
        "version": version_object(ancestor.version) if ancestor.version else None,
        "manifest": ancestor.manifest.model_dump(mode="json") if ancestor.manifest else None,
        "problem": ancestor.problem,
    }
