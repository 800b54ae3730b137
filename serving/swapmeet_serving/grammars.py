"""Constraints compiled to masks over the vocabulary, by llguidance.

Grammars come from strangers, so llguidance's limits are set well below its defaults, the first mask is computed
before a request is accepted, and a matcher that takes too long afterwards ends its own request and no other.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from swapmeet_serving.constraints import Constraint
from swapmeet_serving.errors import InvalidRequest

Result = TypeVar("Result")

MOST_KEPT = 64
DEEP = 512 << 20
"""Bytes of stack to compile on, of which only what is used is ever taken: llguidance goes down every chain of rules,
10 KB a rule, and the end of a usual thread's stack would be that of the process."""

LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
FREE_SECONDS, SECONDS_PER_TOKEN = 0.1, 0.005
"""What a matcher may compute in all, at the start and for each token more; usual ones need a tenth of a millisecond."""

NAMES = {"json_schema": "The JSON schema", "regex": "The regex", "choice": "The choice", "lark": "The grammar"}


class Matcher:
    """Where one answer stands in its grammar.

    A mask allows end-of-text tokens exactly where the grammar accepts, and never any other special token or an id
    that stands for no token. It has `words` of 32 bits.
    """

    def __init__(self, matcher: Any, words: int) -> None:
        self.words = words
        self._matcher = matcher
        self._allowance = FREE_SECONDS

    @property
    def problem(self) -> str | None:
        """Why the grammar can not be followed any further."""
        if self._allowance < 0:
            return "it takes too long to follow"
        return _plainly(self._matcher.get_error()) if self._matcher.is_error() else None

    @property
    def complete(self) -> bool:
        """Whether nothing more can follow; a problem is not the end."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def fill(self, row: npt.NDArray[np.int32]) -> None:
        """Write the mask of the next token, a bit for each id, the lowest first."""
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._allowance += SECONDS_PER_TOKEN - (time.thread_time() - began)
        if self.problem:
            row.fill(-1)  # whoever chooses needs something to choose from

    def advance(self, token: int) -> None:
        """Take in a token that was chosen under the last mask."""
        self._matcher.consume_token(token)


class Grammar:
    """A compiled constraint; each answer under it needs a matcher of its own."""

    def __init__(self, start: Any, words: int) -> None:
        self._start = start
        self._words = words

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        return Matcher(self._start.deep_copy(), self._words)


class Grammars:
    """Compiles constraints for one tokenizer, and keeps the latest ones. May be used from any thread.

    Args:
        tokenizer: of transformers, a fast one.
        vocabulary: how many logits the model gives, which may be more or fewer than there are tokens.
        eos: the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, eos: frozenset[int]) -> None:
        self._source = tokenizer
        self._ids = max(vocabulary, len(tokenizer))
        self._eos = sorted(eos)
        self._tokenizer: Any = None
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint. Takes up to a second where it is new and large.

        Raises:
            InvalidRequest: it can not be enforced; the message says why.
        """
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint]
        grammar = _on_deep_stack(lambda: self._compile(constraint))
        with self._lock:
            self._kept[constraint] = grammar
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _compile(self, constraint: Constraint) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        text = constraint.text
        if constraint.kind == "json_schema":
            text = LLMatcher.grammar_from_json_schema(text)
        elif constraint.kind == "regex":
            text = LLMatcher.grammar_from_regex(text)
        elif constraint.kind == "choice":
            text = f"start: {constraint.rule}"
        start = LLMatcher(self._made_tokenizer(), text, log_level=0, limits=LLParserLimits(**LIMITS))
        words = (self._ids + 31) // 32
        first = Matcher(start, words)
        if not first.problem:
            first.fill(np.empty(words, np.int32))
        if first.problem:
            raise InvalidRequest(f"{NAMES[constraint.kind]} can not be enforced: {first.problem}.")
        return Grammar(start, words)

    def _made_tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        with self._making:
            if self._tokenizer is None:
                eos = self._eos or [self._source.eos_token_id]
                if eos == [None]:
                    raise InvalidRequest("This base has no end-of-text token, so its answers can not be constrained.")
                try:
                    self._tokenizer = from_tokenizer(self._source, n_vocab=self._ids, eos_token=eos)
                except ValueError as error:
                    raise InvalidRequest(f"Answers of this base can not be constrained: {error}.") from error
            return self._tokenizer


def _on_deep_stack(work: Callable[[], Result]) -> Result:
    """What a function gives, or raises, on a thread made for it."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with _stack_size:
        usual = threading.stack_size(DEEP)
        try:
            threading.Thread(target=run, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    return done.result()


_stack_size = threading.Lock()


def allowed(matchers: Sequence[Matcher], vocabulary: int) -> npt.NDArray[np.bool_]:
    """(n, vocabulary): which tokens may come next. All matchers are of one tokenizer."""
    masks = np.empty((len(matchers), matchers[0].words), np.int32)
    for matcher, row in zip(matchers, masks, strict=True):
        matcher.fill(row)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    return bits.view(np.bool_)


def _plainly(message: str) -> str:
    """What llguidance complains of, without the grammar that it quotes."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    return "nothing can match it" if reason.startswith("NoExtension") else reason.rstrip(".")[:300]
