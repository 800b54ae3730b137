"""The registry: publish, resolve and fetch versions of adapters, kept in a folder, a bucket or on a Hub.

A publish brings a version's files where they must be, and then writes the head of its name, which lists the versions
and aliases. Until the head is written nobody sees anything; from then on everything that it names is there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from swapmeet_registry.admission import reports
from swapmeet_registry.admission.admit import Admitted, admit
from swapmeet_registry.admission.lora_parts import Modules
from swapmeet_registry.admission.statements import require_plain
from swapmeet_registry.admission.statistics import Report
from swapmeet_registry.backend import Staged, open_backend
from swapmeet_registry.contents import Contents
from swapmeet_registry.copies.pulling import unpack
from swapmeet_registry.errors import NotFound
from swapmeet_registry.fault import reached
from swapmeet_registry.fingerprint import Fingerprint, require_fit
from swapmeet_registry.head import Head, Withdrawal
from swapmeet_registry.heads import Heads
from swapmeet_registry.life import Life, now
from swapmeet_registry.manifest import Manifest, StoredFile
from swapmeet_registry.names import AdapterName, Reference, require_settable_alias
from swapmeet_registry.origin.licences import Licences
from swapmeet_registry.origin.lineage import Ancestor, ancestors
from swapmeet_registry.recalls import Recalls
from swapmeet_registry.signing import OFF, Signature, Signatures, Trust
from swapmeet_registry.signing.keys import PrivateKey, PublicKey
from swapmeet_registry.stores import Store
from swapmeet_registry.version import Listing, Version

if TYPE_CHECKING:
    from swapmeet_registry.index import Page

_log = logging.getLogger(__name__)


class Registry(Life):
    """Adapters by name, in a local folder, in an S3 bucket, or in the repositories of a Hub's organization.

    Picklable, and safe to use from several threads and processes at once.

    Args:
        url: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `hf://ORGANIZATION`, or an open store.
        trust: whose signatures versions must bear to be pulled; of nobody, unless given.

    Raises:
        InvalidName: the URL is of no known kind.
    """

    def __init__(self, url: str | Store, trust: Trust = OFF) -> None:
        self.backend = open_backend(url)
        self._signatures = Signatures(self.backend, trust)
        self._contents = Contents(self.backend)
        self.recalls = Recalls(self.backend)
        super().__init__(Heads(self.backend))

    def push(
        self,
        folder: Path,
        name: str,
        *,
        base: Fingerprint,
        alias: str | None = None,
        license: str | None = None,  # noqa: A002 - the word of manifests and of the command line
        base_license: str | None = None,
        tags: Sequence[str] = (),
        modules: Modules | None = None,
        run: str | None = None,
        once: str | None = None,
    ) -> Version:
        """Publish an adapter's folder as the next version of a name.

        Args:
            folder: what PEFT's `save_pretrained()` wrote; its `swapmeet.json`, if any, goes into the manifest.
            name: `TENANT/NAME`.
            base: the base that the adapter belongs to.
            alias: pointed to the new version in the same step.
            license: instead of the one in `swapmeet.json`; where there is none, the base's.
            base_license: the base's, where it is known. A licence that restricts more than the adapter's is warned of.
            tags: instead of those in `swapmeet.json`.
            modules: the shapes of the base's weights (`bases.module_shapes`), to check the adapter's against.
            run: what made it, instead of what `swapmeet.json` says; whoever publishes a run again under the same name,
                after a crash or at the same moment, gets the version that was made first.
            once: the same without a word in the manifest: a name for this publish, by which its repetition is known.

        Raises:
            BaseMismatch: the adapter was trained on other weights.
            Refused: its files are unsound or unsupported.
            StoreError: the store failed; nothing was published.
        """
        target = AdapterName.parse(name)
        if alias is not None:
            require_settable_alias(alias)
        nonce = run or once
        if nonce is not None and (made := self._made_by(target, nonce)) is not None:
            return made
        with admit(Path(folder), base, modules) as admitted:
            for notice in admitted.notices:
                _log.warning(notice)
            given = {"license": license, "base_license": base_license, "tags": tuple(tags), "run": run}
            manifest = _manifest(admitted, target, base, given)
            reached("push.checked")
            with (
                reports.computing(self.backend, admitted.folder) as store_report,
                self.backend.stage(target, manifest, admitted.folder) as staged,
            ):
                store_report(manifest.digest)
                return self._publish(target, staged, alias, nonce or uuid4().hex)

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

    def find(self, ref: str) -> Version:
        """As `resolve`, but a version that was withdrawn is found, too: to look at, not for use.

        Raises:
            InvalidName: the reference is misspelt.
            NotFound: there is none.
        """
        reference = Reference.parse(ref)
        head = self._heads.get(reference.name)
        return Version.of(head, head.find(reference))

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

    def stream(self, version: Version, file: StoredFile) -> Iterator[bytes]:
        """A file's bytes in pieces; the end comes only if they are the right ones.

        Raises:
            Corrupt: they are gone or were changed.
        """
        return self._contents.blob(version, file)

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
            ref: a reference, or a version that `resolve` gave; whether it was recalled meanwhile is looked up again.
            folder: where to; it must not exist, be empty, or hold this version.
            base: refuse the adapter unless it fits this base.
            make_room: is told how many bytes will be written, before any is; not called if the folder is there.

        Raises:
            BaseMismatch: the adapter was trained on other weights; nothing was fetched.
            Corrupt: stored bytes differ from their digest.
            NotFound: there is no such version.
            Recalled: it was recalled.
            Refused: the folder holds something else.
            SignatureInvalid: no trusted key signed it, and one is asked for; nothing was fetched.
        """
        version = self.resolve(ref if isinstance(ref, str) else ref.pinned)
        manifest = self.manifest(version)
        self._signatures.require(version, manifest)
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
            SignatureInvalid: no trusted key signed it, and one is asked for.
        """
        version = self.resolve(ref)
        manifest = self.manifest(version)
        for file in manifest.files:
            self._contents.check(version, file, read=read)
        self._signatures.require(version, manifest)
        return version

    def sign(self, ref: str, key: Path | PrivateKey) -> Signature:
        """Sign a version: its name, its manifest and all its files. Once more changes nothing.

        Args:
            ref: a reference; what it stands for now is signed.
            key: a private key, or its PEM file where that needs no password.

        Raises:
            NotFound: there is no such version.
            SigningKeyInvalid: the file holds no key that can be used.
        """
        private = key if isinstance(key, PrivateKey) else PrivateKey(key)
        version = self.resolve(ref)
        return self._signatures.sign(version, self.manifest(version), private)

    def add_signature(self, ref: str, bundle: bytes, key: Path) -> Signature:
        """Keep a signature that an OpenSSF model-signing tool made of the version's folder as it is pulled.

        Args:
            ref: a reference.
            bundle: the signature's document.
            key: the PEM file of the public key that it is of.

        Raises:
            NotFound: there is no such version.
            SignatureInvalid: it is not this key's, or not of this version.
            SigningKeyInvalid: the file holds no public key.
        """
        version = self.resolve(ref)
        return self._signatures.add(version, self.manifest(version), bundle, PublicKey.read(key))

    def signatures(self, version: Version) -> tuple[Signature, ...]:
        """Who signed a version; signatures of trusted keys are checked, of others nothing is known.

        Raises:
            Corrupt: the stored manifest is gone or was changed.
            SigningKeyInvalid: the trusted keys can not be read.
        """
        return self._signatures.of(version, self.manifest(version))

    def lineage(self, ref: str | Version, reader: str | None = None) -> tuple[Ancestor, ...]:
        """What a version comes from: its parent first, then that one's, as far as they can be read.

        Args:
            ref: a reference, or a version that `resolve` gave.
            reader: the tenant who asks: what he may not see looks as if it were missing. None sees all.

        Raises:
            Corrupt: the version's own manifest is gone or was changed.
            NotFound: there is no such version.
        """
        version = self.resolve(ref) if isinstance(ref, str) else ref
        return tuple(ancestors(self._heads, self.manifest, self.manifest(version), reader))

    def show(self, name: str) -> Listing:
        """Everything under a name.

        Raises:
            NotFound: there is no such adapter.
        """
        return Listing.of(self._heads.get(AdapterName.parse(name)))

    def head(self, name: str) -> Head:
        """All that is written down of a name.

        Raises:
            NotFound: there is no such adapter.
        """
        return self._heads.get(AdapterName.parse(name))

    def names(self, tenant: str | None = None) -> list[str]:
        """All adapters' names, or all of one tenant's, sorted."""
        return self.backend.names(tenant)

    def search(self, words: str = "", *, reader: str | None = None, **filters: Any) -> "Page":
        """Find adapters by words and filters, in an index in the user's cache that is brought up to date first.

        Args:
            words: each must begin a word of the adapter's name, tags, base, purpose or card.
            reader: a tenant, to find only what it may read; None finds all.
            filters: see `index.Query`: base, task, tags, license, owner, rank_min, size_max, metrics, sort, limit, ….

        Raises:
            IndexFailed: the index can not be kept.
            InvalidQuery: a filter is wrong.
            StoreError: the store failed.
        """
        from swapmeet_registry.index import Query, open_index  # SQLAlchemy takes long to import

        query = Query(words, **filters)
        return open_index(self, lambda index: index.search(query, reader))

    def _withdraw(self, ref: str, how: Withdrawal, reason: str) -> Version:
        version = super()._withdraw(ref, how, reason)
        if how != "yanked":
            reached("recall.head")
            self.recalls.tell(version)
        return version

    def _made_by(self, name: AdapterName, nonce: str) -> Version | None:
        """The version that a run, or a publish of this name, made already."""
        try:
            head = self._heads.get(name)
        except NotFound:
            return None
        record = head.published(nonce)
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
    facts |= {field: value for field, value in given.items() if value}
    require_plain(facts)
    licences = Licences(facts.get("license"), facts.get("base_license"), facts.get("dataset_license"))
    for concern in licences.concerns():
        _warn(f"{name}: {concern}")
    return Manifest.build(
        **facts | {"license": licences.inherited},
        adapter=str(name),
        created_at=now(),
        files=admitted.files,
        lora=admitted.lora,
    )


def _warn(warning: str | None) -> None:
    if warning:
        _log.warning(warning)
