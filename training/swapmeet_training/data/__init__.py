"""Training data: read from JSON Lines, Parquet files and folders of HF `datasets`, and checked row by row.

`rows` gives what stands on each line, `parsing` makes it an example or says what is wrong, with field, kind and remedy,
and `reading` goes through whole files.
"""

from swapmeet_training.data.examples import Chat, Completion, Example, Message, Preference, ToolCall
from swapmeet_training.data.findings import KINDS, MAX_MISTAKES, Finding
from swapmeet_training.data.reading import dataset_digest, read_examples

__all__ = [
    "KINDS",
    "MAX_MISTAKES",
    "Chat",
    "Completion",
    "Example",
    "Finding",
    "Message",
    "Preference",
    "ToolCall",
    "dataset_digest",
    "read_examples",
]
