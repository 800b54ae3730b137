"""What a publish is made of: the manifest of an admitted folder, and the step that adds it to the head of its name."""

import logging
from typing import Any

from swapmeet_registry.admission.admit import Admitted
from swapmeet_registry.admission.statements import require_plain
from swapmeet_registry.backend import Backend, Staged
from swapmeet_registry.errors import NotFound
from swapmeet_registry.fault import reached
from swapmeet_registry.fingerprint import Fingerprint, require_fit
from swapmeet_registry.head import Head
from swapmeet_registry.heads import Heads
from swapmeet_registry.life import now
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.names import AdapterName
from swapmeet_registry.origin.licences import Licences
from swapmeet_registry.version import Version

_log = logging.getLogger(__name__)


def manifest_of(admitted: Admitted, name: AdapterName, base: Fingerprint, given: dict[str, Any]) -> Manifest:
    """The manifest of the next version: what was found in its folder, and what is given instead, as far as it is.

    Raises:
        BaseMismatch: the adapter was trained on other weights.
    """
    facts: dict[str, Any] = {"base": base}
    if admitted.provenance is not None:
        if warning := require_fit(admitted.provenance.base, base, str(name)):
            _log.warning(warning)
        facts = admitted.provenance.facts()
    facts |= {field: value for field, value in given.items() if value}
    require_plain(facts)
    licences = Licences(facts.get("license"), facts.get("base_license"))
    return Manifest.build(
        **facts | {"license": licences.inherited},
        adapter=str(name),
        created_at=now(),
        files=admitted.files,
        lora=admitted.lora,
    )


class Publishing:
    """Adds versions to heads, each once: a nonce tells a publish that took place already from another's."""

    def __init__(self, backend: Backend, heads: Heads) -> None:
        self._backend, self._heads = backend, heads

    def made(self, name: AdapterName, nonce: str) -> Version | None:
        """The version that the publish with a nonce made already, if it did."""
        try:
            head = self._heads.get(name)
        except NotFound:
            return None
        record = head.published(nonce)
        if record is None:
            return None
        self._backend.settle(name, head)
        return Version.of(head, record)

    def add(self, name: AdapterName, staged: Staged, alias: str | None, nonce: str) -> Version:
        """Add a staged version to the head, with the alias that points to it."""
        manifest = staged.manifest

        def grow(head: Head) -> Head:
            if head.published(nonce):
                return head
            grown = head.publish(manifest.digest, manifest.created_at, nonce)
            return grown.tag(alias, len(grown.versions), manifest.created_at) if alias else grown

        reached("push.before_head")
        head = self._heads.change(name, grow, start=Head(adapter=str(name)), staged=staged)
        reached("push.head")
        self._backend.settle(name, head)
        record = head.published(nonce)
        assert record is not None
        return Version.of(head, record)
