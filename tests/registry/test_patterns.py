"""What `adapter_config.json` says of modules by their names is read as PEFT reads it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from swapmeet_registry import Fingerprint
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.admission.lora_config import is_within, parse

SETTINGS = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
MODULES = st.text(st.sampled_from("ab.1-"), min_size=1, max_size=8)
PARTS = st.lists(st.sampled_from(["a", "b", ".", "1", "-", r"\.", r"\d", "ab", "a.b"]), min_size=1, max_size=5)
PATTERNS = st.tuples(st.sampled_from(["", "^"]), PARTS.map("".join)).map("".join)


@given(pattern=PATTERNS, module=MODULES)
def test_patterns_match_as_in_peft(pattern: str, module: str) -> None:
    """`peft.utils.other.get_pattern_key` has the same expression."""
    config = parse(json.dumps(SETTINGS | {"rank_pattern": {pattern: 3}}).encode())
    assert config.rank(module) == (3 if re.match(rf"(.*\.)?({pattern})$", module) else 8)


@given(name=st.text(st.sampled_from("ab."), min_size=1, max_size=3), module=MODULES)
def test_saved_modules_are_those_of_peft(name: str, module: str) -> None:
    """PEFT wraps modules whose names end so, and with them what is in them."""
    ends = [place for place, letter in enumerate(module) if letter == "."] + [len(module)]
    assert is_within(name, module) is any(module[:end].endswith(name) for end in ends)


def test_a_dropout_of_minus_nothing_is_nothing(
    make_adapter: Callable[..., Path], tmp_path: Path, base: Fingerprint
) -> None:
    digests = set()
    for number, dropout in enumerate((0, 0.0, -0.0)):
        with admit(make_adapter(tmp_path / str(number) / "adapter", lora_dropout=dropout), base) as admitted:
            digests.add(admitted.files)
    assert len(digests) == 1
