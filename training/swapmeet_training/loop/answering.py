"""What the finished adapter answers to the first held-out prompts, decoded greedily on the base that it was trained on.

Nothing follows it in a run but the adapter's files, and it changes no weights. Of validation files only, never of
training rows: what those bring back says more of memory than of skill. The first rows, so that whoever wrote the file
knows which ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from swapmeet_registry.bases.nf4 import allow_packing
from swapmeet_registry.bases.quiet import quiet
from swapmeet_registry.origin.provenance import Answer, Examples
from swapmeet_training.data import Example, dataset_digest, read_examples
from swapmeet_training.data.dataset import load_tokenizer
from swapmeet_training.data.examples import Completion, Message
from swapmeet_training.data.examples import Preference as Preferred
from swapmeet_training.data.masking import IGNORED, Masked, end_tokens, sequences_of
from swapmeet_training.spec import FineTune

EXAMPLES = 3
MAX_TOKENS = 128
MAX_SECONDS = 20.0
"""For all answers together; one more step is let finish."""
MAX_PROMPT, MAX_TEXT = 512, 4000
"""Tokens and characters of the longest prompt that is asked; longer ones are passed over."""
LOOKED_AT = 200
"""So many rows are looked at."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt: as text for people, and as tokens."""

    text: str
    tokens: tuple[int, ...]


def answered(spec: FineTune, model: Any, held_out: Sequence[Masked], pad: int) -> Examples | None:
    """The adapter's answers, or None where there is nothing to ask, or nothing is to be asked.

    Args:
        spec: the run's.
        model: with the weights that are published.
        held_out: the validation file as tokens.
        pad: the token that fills shorter prompts.
    """
    wanted = EXAMPLES if spec.examples is None else spec.examples
    if spec.validation is None or not wanted:
        return None
    asked = list(islice(questions(read_examples(spec.validation), held_out), wanted))
    if not asked:
        return None
    return Examples(
        base=spec.base_fingerprint.weights,
        data=dataset_digest(spec.validation),
        seed=spec.seed,
        max_tokens=MAX_TOKENS,
        answers=tuple(_answers(spec, model, asked, pad)),
    )


def questions(examples: Iterator[Example], held_out: Sequence[Masked]) -> Iterator[Question]:
    """The prompts of examples that are short enough and call no tools, in order."""
    known = {masked.line: sequences_of(masked)[0] for masked in held_out}
    for example in islice(examples, LOOKED_AT):
        text, sequence = prompt_of(example), known.get(example.line)
        if text is None or sequence is None or len(text) > MAX_TEXT:
            continue
        tokens = sequence.tokens[: _answer_begins(sequence.labels)]
        if 0 < len(tokens) <= MAX_PROMPT:
            yield Question(text, tokens)


def prompt_of(example: Example) -> str | None:
    """What comes before the last answer, as people read it; None where tools are part of it."""
    if isinstance(example, Completion):
        return _sound(example.prompt)
    messages = example.messages
    if not isinstance(example, Preferred):
        last = max(number for number, each in enumerate(messages) if each.role == "assistant" and each.trained)
        messages = messages[:last]
    if example.tools or any(each.tool_calls or each.role == "tool" for each in messages):
        return None
    return _sound(_read(messages))


def _read(messages: Sequence[Message]) -> str:
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{each.role}: {each.content}" for each in messages)


def _sound(text: str) -> str:
    """JSON lets half a character stand alone, which no other file does."""
    return text.encode(errors="replace").decode()


def _answer_begins(labels: Sequence[int]) -> int:
    """Where the last run of trained tokens begins."""
    place = max(index for index, label in enumerate(labels) if label != IGNORED)
    while place and labels[place - 1] != IGNORED:
        place -= 1
    return place


def _answers(spec: FineTune, model: Any, asked: Sequence[Question], pad: int) -> Iterator[Answer]:
    tokenizer = load_tokenizer(spec.base)
    ends = end_tokens(spec.base, tokenizer)
    for question, tokens in zip(asked, _generate(model, asked, pad, ends), strict=True):
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        stopped = "length" if length == MAX_TOKENS else "time"
        text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
        yield Answer(
            prompt=question.text, output=_sound(text)[:MAX_TEXT], ended="stop" if length < len(tokens) else stopped
        )


def _generate(model: Any, asked: Sequence[Question], pad: int, ends: frozenset[int]) -> list[list[int]]:
    """The likeliest tokens after each prompt, all at once: reading the base's weights takes most of the time."""
    import torch
    from transformers import GenerationConfig

    longest = max(len(each.tokens) for each in asked)
    tokens = torch.tensor([[pad] * (longest - len(each.tokens)) + list(each.tokens) for each in asked])
    mask = torch.tensor([[0] * (longest - len(each.tokens)) + [1] * len(each.tokens) for each in asked])
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        max_time=MAX_SECONDS,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    model.eval()
    allow_packing(model)  # several times faster on the CPU, and nothing is trained any more
    with quiet(), torch.inference_mode():
        made = model.generate(
            input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        )
    return [row[longest:] for row in made.tolist()]
