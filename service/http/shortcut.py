"""The way of hot requests past the framework, which costs more than they do."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.classify import ClassifyEndpoint, path_parameters
from service.http.identity import Identified
from service.http.open_inference import is_ours
from service.http.protocol import Headers, Refusal
from service.http.tf_serving import PREFIX
from service.token import Token


class Shortcut:
    """Answers the hot endpoints in the application's place; it gets all else.

    Under overload, as a `Doorkeeper`, it refuses before there is anything to answer.

    Args:
        app: The application, which has the same endpoints on a longer way.
        endpoint: What answers images.
        tf_serving: What answers all below `/v1/models`.
        open_inference: What answers all below `/v2`, health aside.
        token: What requests must carry; those without it are the application's to
            refuse.
    """

    def __init__(
        self,
        app: ASGIApp,
        endpoint: ClassifyEndpoint,
        tf_serving: ASGIApp,
        open_inference: ASGIApp,
        *,
        token: Token | None,
    ) -> None:
        self._app = app
        self._endpoint = endpoint
        self._tf_serving = tf_serving
        self._open_inference = open_inference
        self._token = token
        self._identified = Identified(self._answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        await self._identified(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (
            self._token is None or self._token.is_in(scope["headers"])
        ):
            if scope["path"].startswith(PREFIX):
                await self._tf_serving(scope, receive, send)
                return
            if is_ours(scope["path"]):
                await self._open_inference(scope, receive, send)
                return
            if scope["method"] == "POST":
                parameters = path_parameters(scope["path"])
                if parameters is not None:
                    scope["path_params"] = parameters
                    await self._endpoint(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def refuse(self, method: bytes, path: bytes, headers: Headers) -> Refusal | None:
        """Refuse what the endpoint would refuse; see `Doorkeeper`."""
        if method != b"POST" or not self._endpoint.is_overloaded:
            return None
        if self._token is not None and not self._token.is_in(headers):
            return None
        return self._endpoint.refuse(path, dict(headers))
