"""Which repository is whose: no two adapters share one, and a Hub takes every name."""

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_registry import AdapterName, InvalidName
from swapmeet_registry.stores.hub import HubBackend
from swapmeet_registry.stores.hub_names import adapter_name, repository_name

PARTS = st.one_of(
    st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,20}[a-z0-9])?", fullmatch=True),
    st.sampled_from(["acme", "a.b", "a", "b", "b.c", "x--y", "x..y", "z.git", "adapter-" + "0" * 40, "n" * 63]),
)
NAMES = st.builds(AdapterName, PARTS, PARTS)
ORGANIZATIONS = st.sampled_from(["acme", "Acme", "a", "other"])


@given(ORGANIZATIONS, NAMES, NAMES)
def test_no_two_adapters_share_a_repository(organization: str, one: AdapterName, other: AdapterName) -> None:
    repositories = [repository_name(organization, name).lower() for name in (one, other)]
    assert (repositories[0] == repositories[1]) == (one == other)


@given(ORGANIZATIONS, NAMES)
def test_a_hub_takes_every_name_and_readable_ones_lead_back(organization: str, name: AdapterName) -> None:
    repository = repository_name(organization, name)
    validate_repo_id(f"{organization}/{repository}")
    found = adapter_name(organization, repository)
    assert found == name or (found is None and repository.startswith("adapter-"))


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("acme/legal", "legal"),
        ("acme/llama-3.1", "acme.llama-3.1"),
        ("beta/legal", "beta.legal"),
        ("beta.test/legal", "adapter-1d"),
        ("acme/a--b", "adapter-91"),
        (f"{'t' * 63}/{'n' * 63}", "adapter-5c"),
    ],
)
def test_the_forms(name: str, repository: str) -> None:
    found = repository_name("Acme", AdapterName.parse(name))
    assert found == repository or (len(found), found[:10]) == (48, repository)


@pytest.mark.parametrize("repository", ["Legal", "a--b", "adapter-" + "0" * 40, "acme.legal", "x", "_a", "beta..x"])
def test_what_is_not_an_adapters_repository(repository: str) -> None:
    assert adapter_name("acme", repository) in (None, AdapterName("acme", "x"))


def test_urls() -> None:
    for url in ("hf://Acme", "hf://Acme?visibility=public", "hf://a-b_c.d?visibility=gated"):
        assert HubBackend.open(url).url == url
    assert HubBackend.open("hf://acme/?visibility=private").url == "hf://acme"
    for url in ("hf://", "hf://acme/legal", "hf://acme?visibility=secret", "hf://acme?token=x", "hf://-a", "hf://a--b"):
        with pytest.raises(InvalidName, match=r"Write hf://ORGANIZATION"):
            HubBackend.open(url)


def test_a_token_in_an_url_is_not_repeated() -> None:
    with pytest.raises(InvalidName, match=r"holds no token") as caught:
        HubBackend.open("hf://hf_secret@acme")
    assert "secret" not in str(caught.value)
