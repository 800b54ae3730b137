"""Signatures and reports go with the versions that they are about, wherever those are copied.

Who signed is not asked here: a copy need not know whom others trust. What has not the form of a signature or report is
left where it is, and warned of.
"""

import logging
from collections.abc import Iterable, Iterator

from swapmeet_registry.admission.statistics import Report
from swapmeet_registry.backend import Backend, Notes, Source
from swapmeet_registry.errors import NotFound, Refused, SignatureInvalid
from swapmeet_registry.fault import reached
from swapmeet_registry.heads import read_head
from swapmeet_registry.names import AdapterName
from swapmeet_registry.signing import oms
from swapmeet_registry.version import Version

MAX_REPORT = 4 << 20
"""Bytes of a report on weights."""
MAX_SIGNATURES = 16 << 20
"""Bytes of all signatures of one version, which are held in memory together."""

_log = logging.getLogger(__name__)


def notes_of(source: Source, version: Version) -> Notes:
    """What is kept about a version.

    Raises:
        Refused: its signatures are too large.
    """
    signatures: dict[str, bytes] = {}
    for key in source.signers(version):
        if (bundle := _signature(source, version, key)) is not None:
            signatures[key] = bundle
        if sum(map(len, signatures.values())) > MAX_SIGNATURES:
            raise Refused(
                f"The signatures of {version} have over {MAX_SIGNATURES} bytes together. Remove those by keys that "
                f"nobody trusts from {source.place(version)}."
            )
    return Notes(signatures, _report(source, version))


def copy_signatures(source: Source, target: Backend, names: Iterable[AdapterName]) -> None:
    """Copy what the target lacks of the signatures of versions that it has; none of its own is replaced."""
    missing: dict[str, list[str]] = {}
    for digest, key in _missing(source.signed(), target.signed()):
        missing.setdefault(digest, []).append(key)
    for name in names if missing else ():
        try:
            head = read_head(target, name)
        except NotFound:
            continue
        for record in head.versions:
            version = Version.of(head, record)
            for key in missing.get(record.digest, ()) if record.deleted is None else ():
                if (bundle := _signature(source, version, key)) is not None:
                    target.put_signature(version, key, bundle)
                    reached("mirror.signature")


def require_signature(bundle: bytes, what: str) -> None:
    """Refuse what can be nobody's signature; `what` names it."""
    try:
        oms.require_form(bundle)
    except SignatureInvalid as error:
        raise Refused(f"{what} is no signature: {error}.") from error


def require_report(data: bytes, what: str) -> None:
    """Refuse what is no report; `what` names it."""
    if len(data) > MAX_REPORT:
        raise Refused(f"{what} is no report: it has over {MAX_REPORT} bytes.")
    Report.decode(data, what)


def _signature(source: Source, version: Version, key: str) -> bytes | None:
    bundle = source.signature(version, key, oms.MAX_BUNDLE + 1)
    try:
        if bundle is not None:
            require_signature(bundle, f"What is kept of {version} by the key {key}")
    except Refused as error:
        _log.warning(f"{error} It is not copied.")
        return None
    return bundle


def _report(source: Source, version: Version) -> bytes | None:
    data = source.report(version, MAX_REPORT + 1)
    try:
        if data is not None:
            require_report(data, f"The report on {version}")
    except Refused as error:
        _log.warning(f"{error} It is not copied, and computed anew when it is asked for.")
        return None
    return data


def _missing(wanted: Iterator[tuple[str, str]], held: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """What the first of two sorted listings has and the second has not."""
    other = next(held, None)
    for each in wanted:
        while other is not None and other < each:
            other = next(held, None)
        if other != each:
            yield each
