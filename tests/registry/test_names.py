import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swapmeet_registry import AdapterName, InvalidName, Reference
from swapmeet_registry.names import require_digest, require_settable_alias

OUTER, INNER = "abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnopqrstuvwxyz0123456789._-"
parts = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True, alphabet=INNER)
names = st.builds(AdapterName, parts, parts)
aliases = parts.filter(lambda part: not part.isdecimal())
versions = st.integers(1, 999_999_999)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__)
references = st.one_of(
    st.builds(Reference, names),
    st.builds(Reference, names, version=versions),
    st.builds(Reference, names, alias=aliases),
    st.builds(Reference, names, digest=digests),
)


def sound(part: str) -> bool:
    """The rule of the design, spelt out a second time without a regular expression."""
    return 1 <= len(part) <= 63 and part[0] in OUTER and part[-1] in OUTER and all(c in INNER for c in part)


@given(references)
def test_a_reference_reads_back_as_it_prints(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(st.one_of(st.text(), st.text(INNER + "/:@A \n٣")))
@example("a/b\n")
@example("../b")
@example("a/..")
@example("a/b/c")
@example("a/٣")
@example("a" * 64 + "/b")
def test_a_name_is_accepted_exactly_if_the_rule_says_so(text: str) -> None:
    pieces = text.split("/")
    if len(pieces) == 2 and all(map(sound, pieces)):
        assert str(AdapterName.parse(text)) == text
    else:
        with pytest.raises(InvalidName):
            AdapterName.parse(text)


@given(names)
def test_no_name_leaves_its_folder(name: AdapterName) -> None:
    assert os.path.normpath(f"/heads/{name}.json") == f"/heads/{name.tenant}/{name.name}.json"


@given(st.text(INNER + "/:@A\n"))
def test_whatever_parses_prints_the_same(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidName:
        return
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "a/b:",
        "a/b:0",
        "a/b:03",
        "a/b:-1",
        "a/b:٣",
        "a/b:1000000000",
        "a/b:Prod",
        "a/b:prod:1",
        "a/b@",
        "a/b@sha256:" + "A" * 64,
        "a/b@sha256:" + "a" * 63,
        "a/b@sha256:" + "a" * 64 + "\n",
        "a/b:1@sha256:" + "a" * 64,
        "a/b@md5:" + "a" * 32,
    ],
)
def test_misspelt_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Reference.parse(text)


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(InvalidName, match=r"'Acme/legal' is not an adapter name: its tenant must be 1 to 63 char"):
        AdapterName.parse("Acme/legal")
    with pytest.raises(InvalidName, match=r"Write TENANT/NAME"):
        AdapterName.parse("legal")
    with pytest.raises(InvalidName, match=r"Write sha256: and 64"):
        require_digest("sha1:00")
    with pytest.raises(InvalidName, match=r"follows the newest version by itself"):
        require_settable_alias("latest")
    with pytest.raises(InvalidName, match=r"and not a number"):
        require_settable_alias("12")
    with pytest.raises(InvalidName, match=r"only one of them"):
        Reference(AdapterName("a", "b"), version=1, alias="prod")


def test_within_takes_whole_references_and_endings() -> None:
    name = AdapterName("a", "b")
    digest = "sha256:" + "0" * 64
    assert Reference.within(name, "3") == Reference(name, version=3) == Reference.within(name, "a/b:3")
    assert Reference.within(name, "prod") == Reference(name, alias="prod")
    assert Reference.within(name, digest) == Reference(name, digest=digest)
    with pytest.raises(InvalidName, match=r"no version of a/b"):
        Reference.within(name, "a/c:3")
