"""What can go wrong, told without HTTP or gRPC; each edge maps it to its own statuses.

BlockserveError
├── InvalidRequest               the caller must change the request
│   ├── InvalidImage             bytes that no decoder accepts
│   ├── InvalidTensor            names, dtypes or shapes that the signature excludes
│   ├── UnsupportedMediaType     a body in a form that the endpoint does not read
│   └── TooLarge                 beyond a limit: body, pixels, images
├── NotFound                     no such model, version, label or signature
├── Unavailable                  the same request may succeed later
│   ├── ModelNotReady            known, but no version of it is serving
│   ├── VersionGone              it served a moment ago, and another version may now
│   ├── Overloaded               the queue is full, or too long for the deadline
│   └── Draining                 the process is shutting down
├── ClientDisconnected           the caller went away and will read no answer
├── DeadlineExceeded             the caller's time ran out
├── EngineFailure                the engine failed at a valid request
└── InvalidSettings              at start: the operator must change a setting
UnsupportedModel                 at load: no engine here runs it, or its card is wrong
"""

from typing import Final

# All that a client is told of what nobody foresaw.
INTERNAL: Final = "internal error; the server's log says why"


class BlockserveError(Exception):
    """An error whose message is meant for the caller.

    `code` is stable: clients may compare it. The message may change; it says what was
    wrong, what was expected and what to do.
    """

    code: str = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class InvalidRequest(BlockserveError):
    """The request is malformed; sending it again cannot help."""

    code = "invalid_request"


class InvalidImage(InvalidRequest):
    """The bytes are not an image that can be decoded."""

    code = "invalid_image"


class InvalidTensor(InvalidRequest):
    """A tensor's name, dtype or shape does not fit the signature."""

    code = "invalid_tensor"


class UnsupportedMediaType(InvalidRequest):
    """The body's content type is not one that the endpoint reads."""

    code = "unsupported_media_type"


class TooLarge(InvalidRequest):
    """The request exceeds a limit that a setting fixes."""

    code = "too_large"


class NotFound(BlockserveError):
    """There is no such model, version, label or signature."""

    code = "not_found"


class Unavailable(BlockserveError):
    """The request is fine and may succeed later.

    `retry_after_seconds` estimates when.
    """

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_seconds: float = 1.0,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class ModelNotReady(Unavailable):
    """The model is known, but no version of it is serving."""

    code = "model_not_ready"


class VersionGone(Unavailable):
    """Who ran this version does so no more; another version may answer."""

    code = "version_gone"


class Overloaded(Unavailable):
    """The queue is full, or longer than the request's deadline allows."""

    code = "overloaded"


class Draining(Unavailable):
    """The process is shutting down, or the version unloaded: no new work is taken."""

    code = "draining"


class ClientDisconnected(BlockserveError):
    """The client went away; nobody reads this message."""

    code = "cancelled"


class DeadlineExceeded(BlockserveError):
    """The caller's time ran out before the answer was there."""

    code = "deadline_exceeded"


class EngineFailure(BlockserveError):
    """The engine failed at a request that its signature allows."""

    code = "engine_failure"


class InvalidSettings(BlockserveError):
    """A setting is impossible; the message names it and says what is possible."""

    code = "invalid_settings"


class UnsupportedModel(Exception):
    """A model cannot be served as it is; the message says why and what to do."""
