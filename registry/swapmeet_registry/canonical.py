"""JSON in one form, so that equal documents have equal bytes and one digest.

Written: UTF-8, keys sorted by code point, no spaces, no NaN or infinity, floats in the shortest decimal
form that reads back equal (Python's `repr`). A digest is always taken over the bytes as stored, never over a
document written anew, so a reader in another language need not reproduce the float form.
Read: UTF-8 without byte order mark, one object, no key twice, no NaN or infinity.
"""

import hashlib
import json
from typing import Any, NoReturn

MAX_DIGITS = 1000
"""Of a whole number; to read one takes time that grows with their square."""


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        ValueError: a number is not finite, or a text is not valid Unicode.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def decode(data: bytes) -> dict[str, Any]:
    """Read one JSON object, canonical or not.

    Raises:
        ValueError: it is anything else; the message completes the sentence "FILE is …".
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_not_a_number, parse_int=_whole_number
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def digest(data: bytes) -> str:
    """`sha256:HEX` of some bytes."""
    return f"sha256:{sha256(data)}"


def sha256(data: bytes) -> str:
    """The hex SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"ambiguous: it gives {max(names, key=names.count)!r} twice")
    return result


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"not JSON that can be read (it gives a number of {len(digits)} digits)")
    return int(digits)


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"not JSON ({constant} is no JSON number)")
