"""What a run leaves for its owner to read: each step's figures, and each line's loss.

    metrics.csv     step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy    (the result file's columns)
    losses.jsonl    {"line": 7, "epoch": 2, "loss": 0.41, "tokens": 12}

Both are part of every checkpoint, so that a run that goes on elsewhere goes on with them, without a row twice.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swapmeet_training.progress import Row

METRICS, LOSSES = "metrics.csv", "losses.jsonl"
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
MAX_ROWS = 1_000_000
"""Rows of `losses.jsonl` up to which each epoch has its own; beyond, each line keeps its last one only."""
WORST = 20


class Metrics:
    """`metrics.csv`: appended step by step, in a folder of the run's own."""

    def __init__(self, folder: Path, before: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        self._path.write_text(before or ",".join(COLUMNS) + "\n", encoding="utf-8")

    def add(self, step: int, loss: float, metrics: Mapping[str, float], evaluation: Mapping[str, float]) -> None:
        """A step's row. DPO's accuracy in training is that of its rewards; what was not measured stays empty."""
        cells = (
            step,
            loss,
            metrics.get("token_accuracy", metrics.get("reward_accuracy", "")),
            evaluation.get("eval_loss", ""),
            evaluation.get("eval_token_accuracy", ""),
        )
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(",".join(map(str, cells)) + "\n")

    def text(self) -> str:
        """All rows so far."""
        return self._path.read_text(encoding="utf-8")


class Losses:
    """Every line's loss in every epoch, or only the last one where that would be too many rows.

    Args:
        lines: line number of every example; a long chat may be several.
        epochs: how many there will be.
        max_rows: how many rows may be kept; never fewer than one per line.
    """

    def __init__(self, lines: Iterable[int], epochs: int, max_rows: int = MAX_ROWS) -> None:
        import numpy as np

        self._places = {line: place for place, line in enumerate(dict.fromkeys(lines))}
        kept = epochs if epochs * len(self._places) <= max_rows else 1
        self._nats = np.zeros((kept, len(self._places)))
        self._tokens = np.zeros((kept, len(self._places)), dtype=np.int32)
        self._epochs = np.zeros((kept, len(self._places)), dtype=np.int32)

    def add(self, line: int, epoch: int, loss: float, tokens: int) -> None:
        """The mean loss of an example of a line in an epoch, counted from 0, over so many tokens."""
        at = min(epoch, len(self._epochs) - 1), self._places[line]
        if self._epochs[at] != epoch + 1:
            self._epochs[at], self._nats[at], self._tokens[at] = epoch + 1, 0, 0
        self._nats[at] += loss * tokens
        self._tokens[at] += tokens

    def arrays(self) -> dict[str, Any]:
        """All that was added, to keep."""
        return {"nats": self._nats, "tokens": self._tokens, "epochs": self._epochs}

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self._nats, self._tokens, self._epochs = (arrays[name].copy() for name in ("nats", "tokens", "epochs"))

    def write(self, folder: Path) -> None:
        """Write `losses.jsonl`, whole or not at all."""
        partial = folder / f"{LOSSES}.partial"
        with partial.open("w", encoding="utf-8") as stream:
            for row in self._rows():
                record = {"line": row.line, "epoch": row.epoch, "loss": row.loss, "tokens": row.tokens}
                stream.write(json.dumps(record) + "\n")
        partial.replace(folder / LOSSES)

    def worst(self, most: int = WORST) -> tuple[Row, ...]:
        """The lines with the highest losses when last seen, the highest first."""
        last = {row.line: row for row in self._rows()}
        return tuple(sorted(last.values(), key=lambda row: (-row.loss, row.line))[:most])

    def _rows(self) -> Iterator[Row]:
        columns = (self._epochs.tolist(), self._nats.tolist(), self._tokens.tolist())
        for epochs, nats, tokens in zip(*columns, strict=True):
            for line, epoch, total, count in zip(self._places, epochs, nats, tokens, strict=True):
                if epoch:
                    yield Row(line, epoch, total / max(count, 1), count)
