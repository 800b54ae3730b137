"""Log-probabilities of tokens, for sequences that ask: of the model's own logits, before anything changes them."""

from collections.abc import Container

import torch

from swapmeet_serving.request import Candidate, TokenLogprob
from swapmeet_serving.runner import Logits, PromptLogits
from swapmeet_serving.sequence import Sequence
from swapmeet_serving.token_bytes import TokenBytes

BLOCK = 128
"""Rows of a prompt widened to float32 at once: a row has a whole vocabulary."""


class Logprobs:
    """Tells what the model held of tokens; `special` ones are not shown in texts."""

    def __init__(self, pieces: TokenBytes, special: Container[int]) -> None:
        self._pieces = pieces
        self._special = special

    def of(self, logits: Logits, sequences: list[Sequence], tokens: list[int]) -> dict[Sequence, TokenLogprob]:
        """Of the tokens chosen in a step, by the sequences that want it; prompts' are kept in their sequences."""
        for prompt in logits.prompts:
            self._read_prompt(prompt)
        rows = [row for row, each in enumerate(sequences) if each.request.sampling.logprobs is not None]
        if not rows:
            return {}
        wanting = [sequences[row] for row in rows]
        tops = [each.request.sampling.logprobs or 0 for each in wanting]
        chosen = logits.next if len(rows) == len(sequences) else logits.next[rows]
        found = self._read(chosen, [tokens[row] for row in rows], tops)
        return dict(zip(wanting, found, strict=True))

    def _read_prompt(self, logits: PromptLogits) -> None:
        """Row by row, what was predicted of the prompt's following token."""
        prompt, known = logits.sequence.request.prompt, logits.sequence.prompt_logprobs
        top = logits.sequence.request.sampling.prompt_logprobs or 0
        del known[logits.position + 1 :]
        if not known:
            known.append(TokenLogprob(self._candidate(prompt[0], None), shown=prompt[0] not in self._special))
        following = prompt[logits.position + 1 : logits.position + 1 + len(logits.rows)]
        for begin in range(0, len(following), BLOCK):
            block = list(following[begin : begin + BLOCK])
            rows = logits.rows[begin : begin + len(block)].float()
            known += self._read(rows, block, [top] * len(block))

    def _read(self, logits: torch.Tensor, tokens: list[int], tops: list[int]) -> list[TokenLogprob]:
        """Of a token in each row of (n, vocabulary) float32 logits, with so many of the row's likeliest."""
        values = logits.log_softmax(-1)
        own = values.gather(1, torch.tensor(tokens, device=values.device)[:, None])[:, 0].tolist()
        best, ids = (each.tolist() for each in values.topk(max(tops), -1))
        return [
            TokenLogprob(
                self._candidate(token, logprob),
                tuple(self._candidate(*pair) for pair in zip(ids[row][:top], best[row][:top], strict=True)),
                token not in self._special,
            )
            for row, (token, logprob, top) in enumerate(zip(tokens, own, tops, strict=True))
        ]

    def _candidate(self, token: int, logprob: float | None) -> Candidate:
        return Candidate(token, self._pieces[token], logprob)
