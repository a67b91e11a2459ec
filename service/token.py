"""The optional bearer token that requests must carry, over whatever protocol."""

import hmac
from collections.abc import Iterable


class Token:
    """The bearer token that requests must carry."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def is_in(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers carries it."""
        given = dict(headers).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)
