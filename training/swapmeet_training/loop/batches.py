"""Sequences as the tensors that a model takes: padded rows, each of one example or of several packed ones."""

from dataclasses import dataclass

import torch

from swapmeet_training.data.masking import IGNORED, Sequence

Row = tuple[Sequence, ...]
"""Examples that share a row of a batch, and see nothing of each other."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch.

    `inputs` is what the model takes, each of (rows, length). `targets` has, at each position, the token that the
    model should predict there, or IGNORED, and `owners` the number of the example that it is of: (rows, length - 1).
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    owners: torch.Tensor
    examples: int


def collate(rows: list[Row], pad: int, device: str | torch.device = "cpu") -> Batch:
    """Rows padded on the right to the longest.

    Packed rows come with `position_ids` that start again with each example and with the padding, and without
    `attention_mask`: from these transformers makes a block-diagonal causal mask, for sliding windows, too
    (`find_packed_sequence_indices` in its masking_utils).
    """
    length = max(sum(len(sequence.tokens) for sequence in row) for row in rows)
    tokens, positions, targets, owners = [], [], [], []
    example = 0
    for row in rows:
        ids: list[int] = []
        places: list[int] = []
        wanted: list[int] = []
        owner: list[int] = []
        for sequence in row:
            ids += sequence.tokens
            places += range(len(sequence.tokens))
            wanted += (IGNORED, *sequence.labels[1:])  # nothing stands before the first token to predict it from
            owner += [example] * len(sequence.tokens)
            example += 1
        left = length - len(ids)
        tokens.append(ids + [pad] * left)
        positions.append(places + list(range(left)))
        targets.append(wanted[1:] + [IGNORED] * left)
        owners.append(owner[1:] + [0] * left)
    inputs = {"input_ids": torch.tensor(tokens)}
    if any(len(row) > 1 for row in rows):
        inputs["position_ids"] = torch.tensor(positions)
    else:
        inputs["attention_mask"] = torch.tensor(
            [[1] * len(row[0].tokens) + [0] * (length - len(row[0].tokens)) for row in rows]
        )
    return Batch(
        inputs={name: tensor.to(device) for name, tensor in inputs.items()},
        targets=torch.tensor(targets).to(device),
        owners=torch.tensor(owners).to(device),
        examples=example,
    )


def trained(sequence: Sequence) -> int:
    """How many of a sequence's tokens are predicted in training: the first one never is."""
    return sequence.trained - (sequence.labels[0] != IGNORED)
