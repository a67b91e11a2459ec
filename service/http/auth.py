"""The optional bearer token, checked before anything else reads the request."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.errors import error_body
from service.http.operations import HEALTH_PATHS
from service.http.sending import send_json
from service.token import Token


class RequireToken:
    """ASGI middleware: answers 401 unless the request carries the token.

    Health checks need none, for orchestrators carry none.
    """

    def __init__(self, app: ASGIApp, *, token: Token) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if (
            scope["type"] == "http"
            and scope["path"] not in HEALTH_PATHS
            and not self._token.is_in(scope["headers"])
        ):
            await _refuse(send)
            return
        await self._app(scope, receive, send)


async def _refuse(send: Send) -> None:
    body = error_body("unauthorized", "send the header Authorization: Bearer <token>")
    await send_json(send, 401, body, [(b"www-authenticate", b"Bearer")])
