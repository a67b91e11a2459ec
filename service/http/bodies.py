"""Reads a request body, within a limit, and takes the images out of its three forms."""

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from time import monotonic
from typing import Final

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.types import Receive

from service.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    InvalidRequest,
    TooLarge,
    UnsupportedMediaType,
)
from service.event_loop import Eager

IMAGE_FIELD: Final = b"image"
JSON: Final = b"application/json"
MULTIPART: Final = b"multipart/form-data"
FORMS: Final = (
    "an image as the body (Content-Type: image/jpeg, image/png, … or "
    "application/octet-stream), multipart/form-data with the field 'image', or "
    'application/json as {"images": [{"b64": "…"}]}'
)


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int
) -> bytes:
    """The whole body.

    Raises:
        TooLarge: It is longer than `max_bytes`; told from its header where it has one.
        ClientDisconnected: The client went away.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client went away")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_in_time(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    *,
    max_bytes: int,
    deadline: float,
    check: Callable[[], None],
) -> bytes:
    """The whole body, where the request is not refused before.

    Args:
        receive: The request's, of ASGI.
        headers: Its headers.
        max_bytes: The longest body.
        deadline: Moment of `time.monotonic`, in seconds.
        check: Raises what refuses the request; asked where the body is not there yet.

    Raises:
        DeadlineExceeded: The body was not complete in time.
        BlockserveError: As `read_body` and `check`.
    """
    if b"expect" in headers:
        check()  # to read would be to ask for the body
    reading = Eager(read_body(receive, headers, max_bytes))
    if reading.is_done:
        return reading.result
    with closing(reading):
        check()  # what would be refused in the end need not be sent to the end
        return await _in_time(reading, deadline)


async def _in_time(reading: Eager[bytes], deadline: float) -> bytes:
    try:
        async with asyncio.timeout(deadline - monotonic()):
            return await reading
    except TimeoutError as error:
        raise DeadlineExceeded(
            "the request's time ran out before its body was complete"
        ) from error


def images_of(
    body: bytes, headers: Mapping[bytes, bytes], *, max_images: int
) -> Sequence[bytes]:
    """The encoded images in a body, by its content type.

    Raises:
        InvalidRequest: The body is empty or not of the form its content type says.
        TooLarge: It holds more than `max_images` images.
        UnsupportedMediaType: The content type is none that holds images.
    """
    content_type = headers.get(b"content-type", b"application/octet-stream")
    kind = content_type.partition(b";")[0].strip().lower()
    if not (
        kind.startswith(b"image/")
        or kind in {b"application/octet-stream", JSON, MULTIPART}
    ):
        raise UnsupportedMediaType(
            f"the body is {kind.decode('latin-1')}; send {FORMS}"
        )
    if not body:
        raise InvalidRequest(f"the body is empty; send {FORMS}", code="empty_body")
    if kind == JSON:
        return _images_of_json(body, max_images)
    if kind == MULTIPART:
        return _images_of_multipart(body, content_type, max_images)
    return (body,)


def is_packed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether `images_of` takes longer the larger the body is."""
    content_type = headers.get(b"content-type", b"")
    return content_type.strip().lower().startswith((JSON, MULTIPART))


def _images_of_json(body: bytes, max_images: int) -> list[bytes]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not JSON: {error}", code="invalid_json"
        ) from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise InvalidRequest('expected {"images": [{"b64": "…"}]}', code="invalid_json")
    if len(images) > max_images:
        raise _too_many(max_images)
    return [_image_of_json(index, item) for index, item in enumerate(images)]


def _image_of_json(index: int, item: object) -> bytes:
    encoded = item.get("b64") if isinstance(item, dict) else None
    if not isinstance(encoded, str):
        raise InvalidRequest(
            f'images[{index}]: expected {{"b64": "…"}} with the image in base64',
            code="invalid_json",
        )
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"images[{index}].b64 is not base64: {error}", code="invalid_base64"
        ) from error


def _images_of_multipart(
    body: bytes, content_type: bytes, max_images: int
) -> list[bytes]:
    images: list[bytes] = []
    parts = 0

    def count() -> None:
        # Of all parts, at once: reading half a million would hold everyone up.
        nonlocal parts
        parts += 1
        if parts > max_images:
            raise _too_many(max_images)

    def on_file(file: File) -> None:
        count()
        if file.field_name == IMAGE_FIELD:
            file.file_object.seek(0)
            images.append(file.file_object.read())
        file.close()

    def on_field(field: Field) -> None:
        count()
        if field.field_name == IMAGE_FIELD:
            images.append(field.value or b"")

    _, options = parse_options_header(content_type)
    try:
        parser = FormParser(
            "multipart/form-data",
            on_field,
            on_file,
            boundary=options.get(b"boundary"),
            config={"MAX_MEMORY_FILE_SIZE": len(body)},  # it is in memory already
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(
            f"the multipart body cannot be read: {error}", code="invalid_multipart"
        ) from error
    if not images:
        raise InvalidRequest(
            "the multipart body has no field 'image', as in curl -F image=@photo.jpg",
            code="no_image",
        )
    return images


def _too_many(max_images: int) -> TooLarge:
    return TooLarge(
        f"the request holds more than {max_images} images or parts; send fewer, or "
        "raise max_images_per_request",
        code="too_many_images",
    )


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {max_bytes} bytes; send a smaller image, or raise "
        "max_body_bytes",
        code="body_too_large",
    )
