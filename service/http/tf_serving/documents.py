"""JSON as TensorFlow Serving reads and quotes it.

Its reader is RapidJSON, which takes `NaN`, `Infinity` and strings that are not UTF-8. A
fast library reads what is plain JSON; only what it refuses comes to a slower one, and
what that refuses too is read a third time, to say in RapidJSON's words what is wrong.
"""

import json
import re
from typing import Any, Final, NoReturn

import orjson

from service.errors import InvalidRequest
from service.http.json_arrays import NumberArray

EMPTY: Final = "JSON Parse error: The document is empty"
# To read a text again, slowly, only to say where it is wrong, is not worth more.
LARGEST_EXPLAINED_BYTES: Final = 100_000
# How much of a document an error quotes.
LARGEST_QUOTED_CHARACTERS: Final = 4_000

_WRITER: Final = json.JSONEncoder(
    indent=4, ensure_ascii=False, default=NumberArray.tolist
)
_SPACE: Final = re.compile(r"[ \n\r\t]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FRACTION: Final = re.compile(r"\.[0-9]+")
_EXPONENT: Final = re.compile(r"[eE][+-]?[0-9]+")
_WORDS: Final = re.compile(r"true|false|null|NaN|-?Inf(?:inity)?")
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]*')
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")
_REPEATED: Final = (b'"instances"', b'"inputs"', b'"signature_name"')


class DocumentError(InvalidRequest):
    """The text is not JSON; the message says where and why."""

    code = "invalid_json"


def read(text: bytes) -> Any:
    """The document that a text spells.

    Strings keep bytes that are not UTF-8 as `surrogateescape` does. Of members with the
    same name the first counts.

    Raises:
        DocumentError: It is not JSON.
    """
    # Where a key comes twice, the fast library takes the last one.
    if not any(text.count(key) > 1 for key in _REPEATED):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    decoded = text.decode(errors="surrogateescape")
    try:
        return json.loads(
            decoded, object_pairs_hook=_first_of_each, parse_float=_double
        )
    except (ValueError, RecursionError) as error:
        if len(text) <= LARGEST_EXPLAINED_BYTES:
            _Explainer(decoded).explain()
        raise DocumentError(f"JSON Parse error: {error}") from error


def may_hold_booleans(text: bytes) -> bool:
    """Whether there may be booleans in the document that a text spells."""
    return b"true" in text or b"false" in text


def quote(value: Any) -> str:
    """A value as errors quote it, its end left out where it is long."""
    text = ""
    # Piece by piece, for the whole may be many times as long as the request.
    for piece in _WRITER.iterencode(value):
        text += piece
        if len(text) > LARGEST_QUOTED_CHARACTERS:
            return text[:LARGEST_QUOTED_CHARACTERS] + " ..."
    return text


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _double(text: str) -> float:
    """A number, where a double holds it: RapidJSON refuses others."""
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError("Number too big to be stored in double.")
    return value


class _Explainer:
    """Reads a text up to its first mistake, in RapidJSON's order and words."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def explain(self) -> None:
        """Say what is wrong, if something is.

        Raises:
            DocumentError: Something is.
        """
        self._skip_space()
        if self._at == len(self._text):
            raise DocumentError(EMPTY)
        self._containers()
        self._skip_space()
        if self._at < len(self._text):
            self._fail("The document root must not be followed by other values.")

    def _containers(self) -> None:
        """A value; those inside it without recursion, for they may be nested deeply."""
        closers: list[str] = []
        while True:
            self._skip_space()
            opened = self._take("[{")
            if opened:
                closers.append("]" if opened == "[" else "}")
                self._skip_space()
                if self._take(closers[-1]):
                    closers.pop()
                else:
                    self._name(closers[-1])
                    continue
            else:
                self._scalar()
            while closers:
                self._skip_space()
                if self._take(","):
                    self._skip_space()
                    self._name(closers[-1])
                    break
                if not self._take(closers[-1]):
                    what = "array element" if closers[-1] == "]" else "object member"
                    self._fail(f"Missing a comma or '{closers[-1]}' after an {what}.")
                closers.pop()
            if not closers:
                return

    def _name(self, closer: str) -> None:
        """In an object, the name of a member and the colon behind it."""
        if closer == "]":
            return
        if self._peek() != '"':
            self._fail("Missing a name for object member.")
        self._string()
        self._skip_space()
        if not self._take(":"):
            self._fail("Missing a colon after a name of object member.")

    def _scalar(self) -> None:
        if self._peek() == '"':
            self._string()
        elif word := _WORDS.match(self._text, self._at):
            self._at = word.end()
        else:
            self._number()

    def _string(self) -> None:
        start = self._at
        self._at += 1
        while True:
            self._skip(_PLAIN)
            character = self._peek()
            if character == "":
                self._fail("Missing a closing quotation mark in string.", at=start)
            self._at += 1
            if character == '"':
                return
            if character == "\\":
                self._escape()
            else:
                self._fail("Invalid encoding in string.", at=self._at - 1)

    def _escape(self) -> None:
        start = self._at - 1
        escaped = self._peek()
        self._at += 1
        if escaped == "u":
            if not _HEX.match(self._text, self._at):
                self._fail("Incorrect hex digit after \\u escape in string.", at=start)
            self._at += 4
        elif escaped == "" or escaped not in '"\\/bfnrt':
            self._fail("Invalid escape character in string.", at=start)

    def _number(self) -> None:
        start = self._at
        integer = _NUMBER.match(self._text, self._at)
        if integer is None:
            self._fail("Invalid value.")
        self._at = integer.end()
        if self._peek() == ".":
            fraction = _FRACTION.match(self._text, self._at)
            if fraction is None:
                self._fail("Miss fraction part in number.", at=self._at + 1)
            self._at = fraction.end()
        if self._peek() in {"e", "E"}:
            exponent = _EXPONENT.match(self._text, self._at)
            if exponent is None:
                self._fail("Miss exponent in number.", at=self._at + 1)
            self._at = exponent.end()
        try:
            _double(self._text[start : self._at])
        except ValueError as error:
            self._fail(str(error), at=start)

    def _skip_space(self) -> None:
        self._skip(_SPACE)

    def _skip(self, characters: re.Pattern[str]) -> None:
        found = characters.match(self._text, self._at)
        assert found is not None  # noqa: S101, it matches nothing, too
        self._at = found.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, any_of: str) -> str:
        character = self._peek()
        if character == "" or character not in any_of:
            return ""
        self._at += 1
        return character

    def _fail(self, reason: str, *, at: int | None = None) -> NoReturn:
        characters = self._at if at is None else at
        offset = len(self._text[:characters].encode(errors="surrogateescape"))
        raise DocumentError(f"JSON Parse error: {reason} at offset: {offset}")
