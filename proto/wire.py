"""Protobuf's wire format, for content that a message would only copy.

See https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Sequence
from typing import Final

WIRE_TYPE_BITS: Final = 3
LENGTH_DELIMITED: Final = 2
VARINT_BITS: Final = 7
LAST_VARINT_BYTE: Final = 0x7F
CONTINUES: Final = 0x80

# What a message is joined from.
Part = bytes | memoryview


def length_delimited(number: int, content: Sequence[Part]) -> list[Part]:
    """A field that holds a message, a string, bytes or packed numbers.

    Args:
        number: The field's.
        content: What it holds, in pieces of bytes.
    """
    size = sum(map(len, content))
    key = number << WIRE_TYPE_BITS | LENGTH_DELIMITED
    return [_varint(key) + _varint(size), *content]


def _varint(number: int) -> bytes:
    """A number in protobuf's variable-length encoding."""
    encoded = bytearray()
    while number > LAST_VARINT_BYTE:
        encoded.append(number & LAST_VARINT_BYTE | CONTINUES)
        number >>= VARINT_BITS
    encoded.append(number)
    return bytes(encoded)
