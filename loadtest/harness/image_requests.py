"""How an image is sent over HTTP: as the body, in a form, or as text in JSON."""

from base64 import b64encode
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import orjson

from loadtest.harness.client import Request

JPEG_HEADERS: Final = MappingProxyType({"content-type": "image/jpeg"})
JSON_HEADERS: Final = MappingProxyType({"content-type": "application/json"})
BOUNDARY: Final = "loadtest-boundary"

# Given an encoded image.
MakeRequest = Callable[[bytes], Request]


def raw(path: str) -> MakeRequest:
    """The image is the body."""
    return lambda image: Request(path, JPEG_HEADERS, image)


def multipart(path: str) -> MakeRequest:
    """The image is a file in a form."""
    head = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return lambda image: Request(path, headers, head + image + tail)


def base64_json(path: str) -> MakeRequest:
    """The image is a text in JSON."""

    def request(image: bytes) -> Request:
        document = {"images": [{"b64": b64encode(image).decode()}]}
        return Request(path, JSON_HEADERS, orjson.dumps(document))

    return request


def open_inference(path: str) -> MakeRequest:
    """The image is the only element of a tensor of texts, in JSON."""

    def request(image: bytes) -> Request:
        tensor = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "data": [b64encode(image).decode()],
        }
        return Request(path, JSON_HEADERS, orjson.dumps({"inputs": [tensor]}))

    return request
