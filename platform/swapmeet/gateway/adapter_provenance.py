"""Where a version comes from and who vouches for it, over HTTP. Private keys stay where they are: signatures come."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Path

from swapmeet.gateway.adapter_changes import changing
from swapmeet.gateway.adapter_route import ADAPTER, Backend, Name, Publisher, Reader, Ref
from swapmeet.gateway.adapter_wire import Signing, ancestor_object, version_object
from swapmeet.gateway.marketplace import Noting
from swapmeet.gateway.pages import page
from swapmeet_registry import Reference, Refused
from swapmeet_registry.errors import SignatureInvalid, SigningKeyInvalid
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PublicKey

router = APIRouter(prefix="/v1/adapters" + ADAPTER + "/versions/{ref}", tags=["adapters"])
GENERATIONS = 100
"""So many ancestors are told, each with its manifest."""
MOST_SIGNERS = 32
"""So many keys' signatures of a version are taken over HTTP: each is a megabyte at most, and counts in no quota."""

Signer = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


@router.get("/lineage")
def lineage(ref: Ref, name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """What a version's training went on from, the last first; what the caller may not see looks as if missing."""
    found = backend.access.resolve(caller, Reference.within(name, ref))
    reader = None if caller.operator else caller.tenant
    parents = backend.registry.lineage(found, reader, GENERATIONS)
    return page(list(map(ancestor_object, parents)), False) | {"version": version_object(found)}


@router.get("/signatures")
def signatures(ref: Ref, name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """The ids of the keys that there are signatures of a version by; nothing is said of whether they are good."""
    found = backend.access.resolve(caller, Reference.within(name, ref))
    data = [{"object": "adapter.signer", "id": key} for key in backend.registry.backend.signers(found)]
    return page(data, False) | {"digest": found.digest}


@router.get("/signatures/{signer}")
def signature(ref: Ref, signer: Signer, name: Name, backend: Backend, caller: Reader) -> dict[str, Any]:
    """A version's signature by the key with an id, in base64, if there is one: for whoever checks it for himself."""
    found = backend.access.resolve(caller, Reference.within(name, ref))
    bundle = backend.registry.signature(found, signer, oms.MAX_BUNDLE)
    told = None if bundle is None else base64.b64encode(bundle).decode()
    return {"object": "adapter.signature", "digest": found.digest, "signer": signer, "bundle": told}


@router.post("/signatures")
def sign(ref: Ref, body: Signing, name: Name, backend: Backend, changed: Noting, caller: Publisher) -> dict[str, Any]:
    """Keep a signature of a version, once it was checked with its public key: nobody signs in another's name.

    Once more changes nothing.
    """
    reference = Reference.within(name, ref)
    backend.access.require_own(caller, name)
    bundle, key = _decoded(body)
    with changing(backend, changed, caller, name, "version.sign", str(reference)):
        try:
            version = backend.registry.resolve(str(reference))
            known = backend.registry.backend.signers(version)
            if key.id not in known and len(known) >= MOST_SIGNERS:
                raise Refused(f"{version} bears the signatures of {len(known)} keys already. Sign with one of these.")
            made = backend.registry.add_signature(version.pinned, bundle, key)
        except (SignatureInvalid, SigningKeyInvalid) as error:  # the caller's mistake, and not the server's
            raise Refused(str(error)) from None
    return {"object": "adapter.signature", "digest": version.digest, "signer": made.key, "bundle": body.bundle}


def _decoded(body: Signing) -> tuple[bytes, PublicKey]:
    """What is sent: a signature's document, and the key that it was made with."""
    try:
        return base64.b64decode(body.bundle, validate=True), PublicKey.parse(body.public_key.encode(), "`public_key`")
    except SigningKeyInvalid as error:
        raise Refused(str(error)) from None
    except ValueError:
        raise Refused("`bundle` is not Base64. Send the signature's document in Base64.") from None
