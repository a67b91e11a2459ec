"""What the endpoints of tensors ask of a request before they look into its body."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

from starlette.types import Receive, Scope

from service.errors import InvalidRequest, TooLarge
from service.event_loop import maybe_in_thread
from service.gateway import Gateway
from service.http import terms
from service.http.bodies import read_in_time
from service.http.callers import caller_of
from service.prediction import Call
from service.repository import Target
from service.telemetry.observation import Observation

ENCODING: Final = b"content-encoding"
# zlib takes either header with these.
WINDOW_BITS: Final[Mapping[bytes, int]] = {
    b"gzip": 16 + zlib.MAX_WBITS,
    b"deflate": zlib.MAX_WBITS,
}
IDENTITY: Final = frozenset({b"", b"identity"})


class InvalidEncoding(InvalidRequest):
    """The body is not compressed as its header says."""

    code = "invalid_encoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request whose body is there.

    Attributes:
        headers: With names in small letters.
        body: As it was before it was compressed.
        call: What it says of itself before its body.
    """

    headers: Mapping[bytes, bytes]
    body: bytes
    call: Call

    @classmethod
    async def of(
        cls,
        gateway: Gateway,
        target: Target,
        scope: Scope,
        receive: Receive,
        observation: Observation,
    ) -> Self:
        """Wait for the body, unless the request is refused before.

        Args:
            gateway: What serves.
            target: The model that the request means.
            scope: The request's, of ASGI.
            receive: As `scope`.
            observation: Told which version answers, and when it has been read.

        Raises:
            BlockserveError: The request is refused, or there is no such body.
        """
        gateway.admit()
        observation.find_version = partial(gateway.predictor.version_of, target)
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        call = Call(
            target=target,
            deadline=gateway.deadline(terms.timeout_seconds(headers)),
            priority=terms.priority(headers),
            caller=caller_of(scope, receive),
            observation=observation,
        )
        limit = gateway.settings.max_body_bytes
        body = await read_in_time(
            receive,
            headers,
            max_bytes=limit,
            deadline=call.deadline,
            check=partial(gateway.predictor.check, target, observation=observation),
        )
        observation.has_been_read()
        encoding = headers.get(ENCODING, b"")
        return cls(
            headers=headers,
            # However short it is: it may become as long as the limit.
            body=await maybe_in_thread(
                bool(encoding), _unpacked, body, encoding, limit
            ),
            call=call,
        )


def _unpacked(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """What a body was before it was compressed.

    Raises:
        InvalidEncoding: It is not compressed so.
        TooLarge: It was longer than `max_bytes`.
    """
    name = encoding.strip().lower()
    if name in IDENTITY:
        return body
    if name not in WINDOW_BITS:
        shown = name[: terms.SHOWN_CHARACTERS].decode("latin-1")
        raise InvalidEncoding(
            f"Content-Encoding: expected gzip or deflate, got {shown!r}"
        )
    unpacker = zlib.decompressobj(WINDOW_BITS[name])
    try:
        text = unpacker.decompress(body, max_bytes)
    except zlib.error as error:
        raise InvalidEncoding(f"the body is not {name.decode()}: {error}") from error
    if not unpacker.eof and not unpacker.unconsumed_tail:
        raise InvalidEncoding(f"the body ends before its {name.decode()} does")
    if unpacker.unconsumed_tail:
        raise TooLarge(
            f"the body is larger than {max_bytes} bytes when it is unpacked; send "
            "fewer instances at a time, or raise max_body_bytes",
            code="body_too_large",
        )
    return text
