"""The registry: publish, resolve and fetch versions of adapters, kept in a folder, a bucket or on a Hub.

A publish brings a version's files where they must be, and then writes the head of its name, which lists the versions
and aliases. Until the head is written nobody sees anything; from then on everything that it names is there.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from swapmeet_registry import reports
from swapmeet_registry.admission import Admitted, admit
from swapmeet_registry.backend import Staged, open_backend
from swapmeet_registry.contents import Contents
from swapmeet_registry.errors import NotFound
from swapmeet_registry.fault import reached
from swapmeet_registry.fingerprint import Fingerprint, require_fit
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads
from swapmeet_registry.life import Life, now
from swapmeet_registry.lora_parts import Modules
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName, Reference, require_settable_alias
from swapmeet_registry.pulling import unpack
from swapmeet_registry.statistics import Report
from swapmeet_registry.stores import Store
from swapmeet_registry.version import Listing, Version

_log = logging.getLogger(__name__)


class Registry(Life):
    """Adapters by name, in a local folder, in an S3 bucket, or in the repositories of a Hub's organization.

    Picklable, and safe to use from several threads and processes at once.

    Args:
        url: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `hf://ORGANIZATION`, or an open store.

    Raises:
        InvalidName: the URL is of no known kind.
    """

    def __init__(self, url: str | Store) -> None:
        self.backend = open_backend(url)
        self._contents = Contents(self.backend)
        super().__init__(Heads(self.backend))

    def push(
        self,
        folder: Path,
        name: str,
        *,
        base: Fingerprint,
        alias: str | None = None,
        license: str | None = None,  # noqa: A002 - the word of manifests and of the command line
        tags: Sequence[str] = (),
        modules: Modules | None = None,
        run: str | None = None,
    ) -> Version:
        """Publish an adapter's folder as the next version of a name.

        Args:
            folder: what PEFT's `save_pretrained()` wrote; its `swapmeet.json`, if any, goes into the manifest.
            name: `TENANT/NAME`.
            base: the base that the adapter belongs to.
            alias: pointed to the new version in the same step.
            license: instead of the one in `swapmeet.json`.
            tags: instead of those in `swapmeet.json`.
            modules: the shapes of the base's weights (`bases.module_shapes`), to check the adapter's against.
            run: what made it, instead of what `swapmeet.json` says; whoever publishes a run again under the same name,
                after a crash or at the same moment, gets the version that was made first.

        Raises:
            BaseMismatch: the adapter was trained on other weights.
            Refused: its files are unsound or unsupported.
            StoreError: the store failed; nothing was published.
        """
        target = AdapterName.parse(name)
        if alias is not None:
            require_settable_alias(alias)
        if run is not None and (made := self._made_by(target, run)) is not None:
            return made
        with admit(Path(folder), base, modules) as admitted:
            for notice in admitted.notices:
                _log.warning(notice)
            manifest = _manifest(admitted, target, base, {"license": license, "tags": tuple(tags), "run": run})
            reached("push.checked")
            with (
                reports.computing(self.backend, admitted.folder) as store_report,
                self.backend.stage(target, manifest, admitted.folder) as staged,
            ):
                store_report(manifest.digest)
                return self._publish(target, staged, alias, run or uuid4().hex)

    def resolve(self, ref: str) -> Version:
        """The version that `T/N`, `T/N:3`, `T/N:alias` or `T/N@sha256:HEX` names.

        Raises:
            InvalidName: the reference is misspelt.
            NotFound: there is none, or it was deleted, or yanked; a yanked version answers to its digest only.
            Recalled: it was recalled.
        """
        reference = Reference.parse(ref)
        head = self._heads.get(reference.name)
        return Version.of(head, head.resolve(reference))

    def manifest(self, version: Version) -> Manifest:
        """What a version consists of.

        Raises:
            Corrupt: the stored manifest is gone or was changed.
        """
        return self._contents.manifest(version)

    def report(self, version: Version) -> Report | None:
        """Statistics of a version's weights, for `advice.lines`; None where the weights are too large to look at now.

        Raises:
            Corrupt: the version's manifest or weights are gone or were changed.
        """
        manifest = self.manifest(version)
        return reports.read(self.backend, version.digest, manifest, lambda file: self._contents.blob(version, file))

    def pull(
        self,
        ref: str | Version,
        folder: Path,
        *,
        base: Fingerprint | None = None,
        make_room: Callable[[int], None] = lambda _: None,
    ) -> Version:
        """Fetch a version into a folder, which appears whole or not at all.

        A folder that holds the version already is left as it is. `PeftModel.from_pretrained` loads it.

        Args:
            ref: a reference, or a version that `resolve` gave.
            folder: where to; it must not exist, be empty, or hold this version.
            base: refuse the adapter unless it fits this base.
            make_room: is told how many bytes will be written, before any is; not called if the folder is there.

        Raises:
            BaseMismatch: the adapter was trained on other weights; nothing was fetched.
            Corrupt: stored bytes differ from their digest.
            NotFound: there is no such version.
            Refused: the folder holds something else.
        """
        version = self.resolve(ref) if isinstance(ref, str) else ref
        manifest = self.manifest(version)
        if base is not None:
            _warn(require_fit(manifest.base, base, str(version)))
        unpack(manifest, Path(folder), lambda file: self._contents.blob(version, file), make_room)
        return version

    def verify(self, ref: str, *, read: bool = True) -> Version:
        """Read every byte of a version and compare it with its digest.

        Args:
            ref: a reference.
            read: False takes a Hub's word for the SHA-256 of large files; what is pulled is always read.

        Raises:
            Corrupt: something is gone or was changed.
            NotFound: there is no such version.
        """
        version = self.resolve(ref)
        for file in self.manifest(version).files:
            self._contents.check(version, file, read=read)
        return version

    def show(self, name: str) -> Listing:
        """Everything under a name.

        Raises:
            NotFound: there is no such adapter.
        """
        return Listing.of(self._heads.get(AdapterName.parse(name)))

    def names(self) -> list[str]:
        """All adapters' names, sorted."""
        return self.backend.names()

    def _made_by(self, name: AdapterName, run: str) -> Version | None:
        """The version that a run made, if it was published already."""
        try:
            head = self._heads.get(name)
        except NotFound:
            return None
        record = head.published(run)
        if record is None:
            return None
        self.backend.settle(name, head)
        return Version.of(head, record)

    def _publish(self, name: AdapterName, staged: Staged, alias: str | None, nonce: str) -> Version:
        """Add the version to the head; the nonce tells a write that took place already from another's."""
        manifest = staged.manifest

        def add(head: Head) -> Head:
            if head.published(nonce):
                return head
            grown = head.publish(manifest.digest, manifest.created_at, nonce)
            return grown.tag(alias, len(grown.versions), manifest.created_at) if alias else grown

        reached("push.before_head")
        head = self._heads.change(name, add, start=Head(adapter=str(name)), staged=staged)
        reached("push.head")
        self.backend.settle(name, head)
        record = head.published(nonce)
        assert record is not None
        return Version.of(head, record)


def _manifest(admitted: Admitted, name: AdapterName, base: Fingerprint, given: dict[str, Any]) -> Manifest:
    facts: dict[str, Any] = {"base": base}
    if admitted.provenance is not None:
        _warn(require_fit(admitted.provenance.base, base, str(name)))
        facts = admitted.provenance.facts()
    return Manifest.build(
        **facts | {field: value for field, value in given.items() if value},
        adapter=str(name),
        created_at=now(),
        files=admitted.files,
        lora=admitted.lora,
    )


def _warn(warning: str | None) -> None:
    if warning:
        _log.warning(warning)
