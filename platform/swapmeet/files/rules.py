"""What may be uploaded: purposes, names, sizes and life times. One place for files and for files in parts."""

from collections.abc import Sequence
from datetime import timedelta

from swapmeet.errors import RequestRefused

PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")
"""What a caller may upload a file for."""
FINE_TUNE = "fine-tune"
RESULTS = "fine-tune-results"
"""The purpose of the files that runs leave."""
FORMATS = (".jsonl", ".parquet")
"""Of files to train on."""

LARGEST_FILE = 512 << 20
LARGEST_UPLOAD = 8 << 30
LARGEST_PART = 64 << 20
LONGEST_NAME = 255
SHORTEST_LIFE, LONGEST_LIFE = 3600, 30 * 24 * 3600
"""Seconds after which a file may be made to expire."""
UPLOAD_LIFE = timedelta(hours=1)


def file_mistakes(filename: str, purpose: str, expires_after: int | None) -> list[tuple[str, str]]:
    """Everything wrong with a file's description: the field, and what to do."""
    found = [("purpose", _purpose(purpose)), ("filename", _filename(filename, purpose))]
    if expires_after is not None and not SHORTEST_LIFE <= expires_after <= LONGEST_LIFE:
        wanted = f"Give {SHORTEST_LIFE} to {LONGEST_LIFE} seconds, or leave expires_after out."
        found.append(("expires_after[seconds]", f"expires_after[seconds] is {shortened(expires_after)}. {wanted}"))
    return [(field, sentence) for field, sentence in found if sentence]


def refuse(mistakes: Sequence[tuple[str, str]]) -> None:
    """Nothing, if there are no mistakes.

    Raises:
        RequestRefused: all of them in one message.
    """
    if mistakes:
        raise RequestRefused(" ".join(sentence for _, sentence in mistakes), mistakes[0][0])


def plain_name(filename: str) -> str:
    """A file's name without the folders that some clients send along."""
    return filename.replace("\\", "/").rpartition("/")[2]


def shortened(value: object) -> str:
    """A value for a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _purpose(purpose: str) -> str:
    if purpose in (*PURPOSES, RESULTS):
        return ""
    return f"purpose is {shortened(purpose)}. Give one of {', '.join(PURPOSES)}; files to train on are 'fine-tune'."


def _filename(filename: str, purpose: str) -> str:
    if not filename.strip() or filename in (".", ".."):
        return "The file has no name. Give one, such as train.jsonl."
    if not filename.isprintable() or len(filename) > LONGEST_NAME:
        rule = f"1 to {LONGEST_NAME} printable characters"
        return f"The file's name {shortened(filename)} can not be kept. Give one of {rule}."
    if purpose == FINE_TUNE and not filename.lower().endswith(FORMATS):
        return f"Files to train on are JSONL or Parquet. Name {shortened(filename)} *.jsonl or *.parquet if it is one."
    return ""
