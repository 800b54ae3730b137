"""TensorBoard's event files, written without TensorBoard: records of protobuf messages with checksums.

A record is its length (8 bytes), a checksum of that, the message, and a checksum of the message. A message is an
`Event`: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5; a `Summary` has values = 1,
each with tag = 1 (string) and simple_value = 2 (float).
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from swapmeet.integrations.sink import Point

VERSION = b"brain.Event:2"
MASK = 0xA282EAD8


class EventFileSink:
    """A folder that `tensorboard --logdir` shows as a run.

    Each opening begins a file of its own, which TensorBoard reads after those before it: so the torn record that a
    killed writer may leave at a file's end hides nothing.

    Args:
        folder: the run's own; it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._write(_double(1, time.time()) + _bytes(3, VERSION))

    def log(self, points: Sequence[Point]) -> None:
        """Append points; they are on the disk when this returns."""
        for point in points:
            values = b"".join(
                _bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in point.values.items()
            )
            self._write(_double(1, point.at.timestamp()) + _varint(2, point.step) + _bytes(5, values))
        self._file.flush()
        os.fsync(self._file.fileno())

    def end(self, state: str, at: datetime) -> None:
        """Nothing: files do not say that a run has ended."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        self._file.write(length + _checksum(length) + message + _checksum(message))


def _number(value: int) -> bytes:
    """A protobuf varint; of a negative number, as 64 bits in two's complement."""
    value &= (1 << 64) - 1
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _double(field: int, value: float) -> bytes:
    return _number(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _number(field << 3 | 5) + struct.pack("<f", value)


def _table() -> list[int]:
    """CRC-32C (Castagnoli), byte by byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow's records have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)
