"""`swapmeet signing-key|sign|verify`: who vouches for a version, and whether its bytes are as published."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swapmeet.cli.adapters import Ref
from swapmeet.cli.adapters_opened import adapters_at
from swapmeet.cli.options import Home, Json, RegistryUrl, ServerUrl, show
from swapmeet_registry import Signature, Trust, Version
from swapmeet_registry.signing import oms
from swapmeet_registry.signing.keys import PrivateKey, encrypted, make_keys
from swapmeet_registry.stores.files import os_errors

if TYPE_CHECKING:
    from swapmeet.adapter_client import RemoteAdapters
    from swapmeet_registry import Registry

ONE_KEY = "A public key in PEM: one good signature of it is asked for, whatever SWAPMEET_SIGNATURES says."


def signing_key(
    folder: Annotated[Path, typer.Argument(help="Where to put the pair.")],
    password: Annotated[bool, typer.Option("--password", help="Ask for a password to encrypt it with.")] = False,
    json: Json = False,
) -> None:
    """Make a pair of keys to sign adapters with (ECDSA on P-256)."""
    secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True) if password else None
    private, public, key = make_keys(folder, secret)
    result = {"private": str(private), "public": str(public), "key": key.id}
    text = f"{private} signs; keep it to yourself.\n{public} is for those who check: put it among their trusted keys.\n"
    show(result, f"{text}key {key.id}", json)


def sign(
    reference: Ref,
    key: Annotated[Path, typer.Option(help="The private key in PEM; with --add, the public one.")],
    add: Annotated[Path | None, typer.Option(help="Keep this signature of an OpenSSF model-signing tool.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Sign a version: its name, its manifest and the digests of all its files. The key does not leave this machine."""
    with adapters_at(url, registry, home) as adapters:
        version = adapters.resolve(reference)
        if add is not None:
            made = adapters.add_signature(version.pinned, _document(add), key)
        else:
            password = typer.prompt("Password", hide_input=True, err=True) if encrypted(key) else None
            made = adapters.sign(version.pinned, PrivateKey(key, password))
    result = {"name": version.name, "version": version.version, "digest": version.digest, "key": made.key}
    show(result, f"{version} {version.digest} is signed by the key {made.key}", json)


def verify(
    reference: Ref,
    key: Annotated[Path | None, typer.Option(help=ONE_KEY)] = None,
    save: Annotated[Path | None, typer.Option(help="A folder to write the signatures to, for other tools.")] = None,
    url: ServerUrl = None,
    registry: RegistryUrl = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Read a version whole, compare every byte with its digest, and check its signatures."""
    with adapters_at(url, registry, home, Trust("require", key) if key else None) as adapters:
        version = adapters.verify(reference)
        signatures = adapters.signatures(version)
        if save is not None:
            _save(adapters, version, signatures, save)
    result = {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "signatures": [{**asdict(each), "good": each.good} for each in signatures],
    }
    lines = [f"{version} {version.digest}: all bytes are as published", *map(_line, signatures)]
    show(result, "\n".join([*lines, *([] if signatures else ["no signatures"])]), json)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("signing-key")(signing_key)
    app.command()(sign)
    app.command()(verify)


def _line(signature: Signature) -> str:
    if signature.problem is not None:
        return f"bad signature by {signature.signer}: {signature.problem}"
    if signature.signer is None:
        return f"signature by a key that is not among the trusted ones, {signature.key}"
    return f"good signature by {signature.signer}{'' if signature.named else ', of the files but not of the name'}"


def _save(
    adapters: "Registry | RemoteAdapters", version: Version, signatures: tuple[Signature, ...], folder: Path
) -> None:
    with os_errors(f"write the signatures to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for each in signatures:
            bundle = adapters.signature(version, each.key, oms.MAX_BUNDLE)
            if bundle is not None:
                (folder / f"{each.key}.json").write_bytes(bundle)


def _document(path: Path) -> bytes:
    with os_errors(f"read {path}"), path.open("rb") as stream:
        return stream.read(oms.MAX_BUNDLE + 1)
