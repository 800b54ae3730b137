"""Text comes out whole, in order, and never with half a character or a stop text in it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swapmeet_serving.detokenizer import HALF, Detokenizer, StopFilter, TextStream

VOCABULARY = 384


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def special(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids)


@given(tokens=st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_of_any_tokens_join_to_the_decoded_whole(tokenizer: Any, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer, special(tokenizer))
    pieces = [detokenizer.add(token) for token in tokens]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(pieces) + detokenizer.finish() == whole


@given(text=st.text(max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_piece_holds_half_a_character(tokenizer: Any, text: str) -> None:
    text = text.replace(HALF, "")
    detokenizer = Detokenizer(tokenizer, special(tokenizer))
    pieces = [detokenizer.add(token) for token in tokenizer(text).input_ids]
    assert not any(HALF in piece for piece in pieces)
    assert "".join(pieces) == text


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer, special(tokenizer))
    tokens = tokenizer("€").input_ids
    assert len(tokens) == 3, "the test needs a character of several tokens"
    assert [detokenizer.add(token) for token in tokens[:2]] == ["", ""]
    assert detokenizer.finish() == HALF


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=4), max_size=12), stops=STOPS)
def test_text_ends_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    """Compared with looking at the whole text once each piece has come."""
    stop_filter, given_out = StopFilter(tuple(stops)), ""
    for count, piece in enumerate(pieces, 1):
        given_out += stop_filter.add(piece)
        so_far = "".join(pieces[:count])
        found = [so_far.index(stop) for stop in stops if stop in so_far]
        assert stop_filter.stopped == bool(found)
        if found:
            assert given_out == so_far[: min(found)]
            assert stop_filter.finish() == ""
            return
        assert so_far.startswith(given_out)
        held = so_far[len(given_out) :]
        assert not held or any(stop.startswith(held) for stop in stops), "held back for nothing"
    assert given_out + stop_filter.finish() == "".join(pieces)


def test_a_stop_text_may_run_over_several_tokens(tokenizer: Any) -> None:
    stream = TextStream(Detokenizer(tokenizer, special(tokenizer)), ("lazy dog",))
    tokens = tokenizer("The fox jumps over the lazy dog, and the dog answers.").input_ids
    text = ""
    for token in tokens:
        text += stream.add(token)
        if stream.stopped:
            break
    assert text + stream.finish() == "The fox jumps over the "
    assert token != tokens[-1]
