"""What a Hub shows of an adapter: examples that are everybody's to see, and whose keys signed it."""

from collections.abc import Callable
from pathlib import Path

from hub_server import LoopbackHub
from huggingface_hub import HfApi

from swapmeet_registry import Fingerprint, Provenance, Registry
from swapmeet_registry.copies.mirror import mirror
from swapmeet_registry.origin.provenance import Answer, Examples
from swapmeet_registry.signing.keys import PrivateKey, make_keys

NAME, REPOSITORY = "acme/legal", "Lab-1/acme.legal"


def shown(hub: LoopbackHub, revision: str = "main", name: str = REPOSITORY) -> str:
    repository = hub.repositories[name.lower()]
    return str(repository.content(repository.tree(revision)["README.md"]).decode())


def test_a_card_shows_what_the_adapter_answers_and_who_signed(
    hub: LoopbackHub, make_adapter: Callable[..., Path], base: Fingerprint, tmp_path: Path
) -> None:
    registry, folder = Registry("hf://Lab-1"), make_adapter(tmp_path / "adapter")
    answers = (Answer(prompt="Who?", output="```\n# Nobody\n<b>"), Answer(prompt="How?", output="So", ended="length"))
    made = Examples(base=base.weights, data=base.weights, seed=1, max_tokens=9, answers=answers)
    (folder / "README.md").write_text("---\nexamples:\n- prompt: Is it?\n  output: By hand.\n---\nIt knows the law.\n")
    Provenance(base=base, examples=made).write(folder)
    version = registry.push(folder, NAME, base=base)
    text = shown(hub, "v1")
    for words in ("Examples made by the run", "````text\n```\n# Nobody", "Output (cut off", "stated by the author"):
        assert words in text
    assert "signatures by" not in text
    keys = [PrivateKey(make_keys(tmp_path / name)[0]) for name in ("one", "two")]
    for key in keys:
        registry.sign(NAME, key)
        registry.sign(NAME, key)
    card = shown(hub)
    ids = ", ".join(f"`{each}`" for each in sorted(key.public.id for key in keys))
    assert f"| signatures by | {ids} |" in card
    assert card.replace(f"| signatures by | {ids} |\n", "") == text
    elsewhere = Registry((tmp_path / "elsewhere").as_uri())
    elsewhere.push(folder, "acme/copied", base=base)
    for key in keys:
        elsewhere.sign("acme/copied", key)
    mirror(elsewhere.backend, registry.backend)
    assert f"| signatures by | {ids} |" in shown(hub, "v1", "Lab-1/acme.copied"), "which was signed before it came"
    (folder / "README.md").unlink()
    Provenance(base=base).write(folder)
    registry.push(folder, NAME, base=base)
    newer = shown(hub)
    assert "Examples" not in newer
    third = PrivateKey(make_keys(tmp_path / "three")[0])
    registry.sign(version.pinned, third)
    assert shown(hub) == newer, "which is another version's"
    HfApi(endpoint=hub.address).upload_file(path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id=REPOSITORY)
    registry.sign(NAME, third)
    assert shown(hub) == "# Mine"
    assert registry.backend.signers(registry.resolve(NAME)) == [third.public.id]
