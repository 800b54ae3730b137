"""Texts as words, the same for each database: folded, without accents, letters and digits only.

A word of a question finds all words that begin with it; all words must be found.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

MOST_LETTERS, MOST_WORDS, MOST_ASKED = 64, 2000, 16
_RANKS = "ABCD"
"""How PostgreSQL calls the columns' weights."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
"""A run of letters and digits, or one sign of the scripts that put no spaces between words."""


def words(text: str, most: int = MOST_WORDS) -> list[str]:
    """The words of a text, in order."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(each for each in plain if not unicodedata.combining(each))
    found = (match[0][:MOST_LETTERS] for match in _WORD.finditer(letters))
    return [word for word, _ in zip(found, range(most), strict=False)]


def asked(text: str) -> list[str]:
    """The words of a question, each once."""
    return list(dict.fromkeys(words(text, MOST_ASKED)))


def fts5_query(asked: Sequence[str]) -> str:
    """A question as SQLite's FTS5 takes it."""
    return " AND ".join(f'"{word}"*' for word in asked)


def ts_query(asked: Sequence[str]) -> str:
    """A question as PostgreSQL's `tsquery` reads it."""
    return " & ".join(f"'{word}':*" for word in asked)


def ts_vector(columns: Iterable[Sequence[str]]) -> str:
    """Columns of words as PostgreSQL's `tsvector` reads them, each weighted by its place."""
    at, found = 0, []
    for rank, column in zip(_RANKS, columns, strict=True):
        for word in column:
            at += 1
            found.append(f"'{word}':{min(at, 16_383)}{rank}")
    return " ".join(found)
