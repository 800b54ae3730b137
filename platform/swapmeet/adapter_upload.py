"""A folder on its way to a server's registry: announced, sent in parts, completed, and gone on with if it broke off."""

import hashlib
import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from swapmeet.following import Tell, patiently
from swapmeet.uploading import Watch
from swapmeet_registry import canonical
from swapmeet_registry.admission.adapter_folder import AdapterFolder, open_folder
from swapmeet_registry.stores.files import os_errors

if TYPE_CHECKING:
    from swapmeet.client import Client


@dataclass(frozen=True)
class Upload:
    """Uploads of one adapter.

    Args:
        client: of the server.
        tell: is told that the server does not answer.
        place: the path of the adapter's uploads.
    """

    client: "Client"
    tell: Tell
    place: str

    def publish(self, folder: Path, wanted: dict[str, Any], watch: Watch) -> str:
        """Publish a folder; gives the version's digest.

        The same folder again is the same upload for as long as it is under way, and the next version from then on.

        Args:
            folder: an adapter's.
            wanted: what is said of it; with a `run`, what was published before is not published again.
            watch: is told how many bytes the server has, and how many there are.

        Raises:
            ApiError: the server refused or did not answer.
            Refused: the folder can not be published.
        """
        with os_errors(f"read {folder}"), open_folder(folder) as opened:
            wanted = wanted | {"files": announced(opened)}
        for notice in opened.notices:
            self.tell(notice)
        run = wanted.get("run")
        upload = self._begin(wanted, run or canonical.digest(canonical.encode(wanted)))
        if upload["status"] == "published" and run is None:
            upload = self._begin(wanted, secrets.token_hex(16))
        if upload["status"] != "published":
            self._send(f"{self.place}/{upload['id']}", folder, upload, watch)
            upload = self._ask(f"{self.place}/{upload['id']}/complete")
        return str(upload["digest"])

    def _begin(self, wanted: dict[str, Any], key: str) -> dict[str, Any]:
        return self._ask(self.place, wanted, {"idempotency-key": key})

    def _ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        return patiently(lambda: self.client.call("POST", path, body, headers=headers), self.tell)

    def _send(self, place: str, folder: Path, upload: dict[str, Any], watch: Watch) -> None:
        """All parts that the server lacks."""
        size, step = int(upload["bytes"]), int(upload["part_size"])
        lacking = sum(min(step, file["size"] - at) for file in upload["files"] for at in file["missing"])
        for file in upload["files"]:
            with os_errors(f"read {folder / file['path']}"), (folder / file["path"]).open("rb") as stream:
                for at in file["missing"]:
                    stream.seek(at)
                    part = stream.read(min(step, file["size"] - at))
                    patiently(partial(self._put, f"{place}/files/{quote(file['path'])}", at, part), self.tell)
                    lacking -= len(part)
                    watch(size - lacking, size)

    def _put(self, place: str, at: int, part: bytes) -> dict[str, Any]:
        headers = {"x-content-sha256": hashlib.sha256(part).hexdigest()}
        return self.client.put(place, part, {"offset": at}, headers)


def announced(folder: AdapterFolder) -> list[dict[str, Any]]:
    """The files of an adapter's folder, with sizes and digests."""
    return [_measured(folder, name) for name in folder.files]


def _measured(folder: AdapterFolder, name: str) -> dict[str, Any]:
    with folder.open(name) as stream:
        digest = hashlib.sha256()
        for chunk in iter(partial(stream.read, 1 << 20), b""):
            digest.update(chunk)
        return {"path": name, "size": stream.tell(), "sha256": digest.hexdigest()}
