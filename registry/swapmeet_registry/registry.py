"""The registry: publish, resolve and fetch versions of adapters, kept in a folder, a bucket or on a Hub.

A publish brings a version's files where they must be, and then writes the head of its name, which lists the versions
and aliases. Until the head is written nobody sees anything; from then on everything that it names is there.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from swapmeet_registry.admission import reports
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.admission.lora_parts import Modules
from swapmeet_registry.backend import open_backend
from swapmeet_registry.copies.present import present
from swapmeet_registry.copies.pulling import unpack
from swapmeet_registry.fault import reached
from swapmeet_registry.fingerprint import Fingerprint, require_fit
from swapmeet_registry.head import Withdrawal
from swapmeet_registry.life import Life, Withdrawn
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName, require_settable_alias
from swapmeet_registry.origin.licences import concerns_of
from swapmeet_registry.origin.lineage import ancestors
from swapmeet_registry.publishing import Publishing, manifest_of
from swapmeet_registry.recalls import Recalls
from swapmeet_registry.signing import OFF, Trust
from swapmeet_registry.stores import Store
from swapmeet_registry.version import Version
from swapmeet_registry.vouching import Vouching

if TYPE_CHECKING:
    from swapmeet_registry.index import Page

_log = logging.getLogger(__name__)


class Registry(Vouching, Life):
    """Adapters by name, in a local folder, in an S3 bucket, or in the repositories of a Hub's organization.

    Picklable, and safe to use from several threads and processes at once.

    Args:
        url: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `hf://ORGANIZATION`, or an open store.
        trust: whose signatures versions must bear to be pulled; of nobody, unless given.

    Raises:
        InvalidName: the URL is of no known kind.
    """

    def __init__(self, url: str | Store, trust: Trust = OFF) -> None:
        Vouching.__init__(self, open_backend(url), trust)
        Life.__init__(self, self._heads)
        self._publishing = Publishing(self.backend, self._heads)
        self.recalls = Recalls(self.backend)

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
        if nonce is not None and (made := self._publishing.made(target, nonce)) is not None:
            return made
        with admit(Path(folder), base, modules) as admitted:
            for notice in admitted.notices:
                _log.warning(notice)
            given = {"license": license, "base_license": base_license, "tags": tuple(tags), "run": run}
            manifest = manifest_of(admitted, target, base, given)
            self._warn_of_licences(target, manifest)
            reached("push.checked")
            with (
                reports.computing(self.backend, admitted.folder) as store_report,
                self.backend.stage(target, manifest, admitted.folder) as staged,
            ):
                store_report(manifest.digest)
                return self._publishing.add(target, staged, alias, nonce or uuid4().hex)

    def made(self, name: str, once: str) -> Version | None:
        """The version that a publish made under a name, by its `run` or `once`, if it did (`push`)."""
        return self._publishing.made(AdapterName.parse(name), once)

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
        there = present(version, Path(folder))
        manifest = there or self.manifest(version)
        self.require_signed(version, manifest)
        if base is not None and (warning := require_fit(manifest.base, base, str(version))):
            _log.warning(warning)
        if there is None:
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
        self.require_signed(version, manifest)
        return version

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

    def _warn_of_licences(self, name: AdapterName, manifest: Manifest) -> None:
        """Say where others restrict more than the adapter's licence; of a parent as far as its tenant may read it."""
        parents = ancestors(self._heads, self.manifest, manifest, name.tenant, 1)
        for concern in concerns_of(manifest, next((each.manifest for each in parents), None)):
            _log.warning(f"{name}: {concern}")

    def withdraw(self, ref: str, how: Withdrawal, reason: str) -> Withdrawn:
        """See `Life`; servers are told of what they must drop."""
        done = super().withdraw(ref, how, reason)
        if how != "yanked":
            reached("recall.head")
            self.recalls.tell(done.version)
        return done
