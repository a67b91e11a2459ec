"""Users over gRPC; those of a process share a few connections.

gRPC has to be told that gevent, on which Locust runs, switches between users: before
anything of it runs, and after Locust has made its worker processes. Then a call that is
waited for at once (`call(…)`) holds one of gevent's ten threads meanwhile, and an
eleventh waits for one of them to be free, which would look as if the server were slow.
A future holds none: with 32 users, twice as many calls a second.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from time import time
from typing import Any, ClassVar, Final

import grpc
import grpc.experimental.gevent

from loadtest.harness.protocol_requests import Model
from loadtest.shapes.outcomes import REFUSED
from loadtest.users.base import Failed, ImageUser, milliseconds_since
from loadtest.users.subject import Subject

# A gateway's workers share the connections, and not the calls.
CONNECTIONS: Final = 4
PUSHBACK: Final = "grpc-retry-pushback-ms"
BUSY: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
LARGEST_MESSAGE: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


class GrpcImageUser(ImageUser):
    """Calls, and counts apart what is refused with a time to come back at.

    Attributes:
        method: As in `/package.Service/Method`.
        message: What is sent for an image.
    """

    abstract = True
    method: ClassVar[str]
    message: "ClassVar[staticmethod[[bytes, Model], bytes]]"
    _numbers = count()

    @classmethod
    def prepare(cls, subject: Subject) -> None:
        """See `ImageUser`."""
        _speak_gevent()
        super().prepare(subject)

    @classmethod
    def content(cls, image: bytes) -> bytes:
        """See `ImageUser`."""
        return cls.message(image, cls.subject.model)

    @classmethod
    def answers_alone(cls, contents: Sequence[bytes]) -> list[bytes]:
        """See `ImageUser`."""
        return [cls._call(0, one).result() for one in contents]

    @classmethod
    def _call(cls, connection: int, message: bytes) -> Any:
        channel = _channel(cls.subject.grpc_host, connection)
        call: Any = channel.unary_unary(cls.method)
        return call.future(
            message,
            timeout=cls.subject.patience_seconds,
            metadata=tuple(cls.subject.authorization.items()),
        )

    def on_start(self) -> None:
        """Choose a connection."""
        self._connection = next(self._numbers) % CONNECTIONS
        super().on_start()

    def ask(self) -> None:
        """Call, and tell Locust what became of it."""
        question = self.next_question()
        due_seconds = self.due_seconds()
        started = time()
        call = self._call(self._connection, question.content)
        name, answer, status = self.method, b"", grpc.StatusCode.OK
        failed: Failed | None = None
        try:
            answer = call.result()
        except grpc.RpcError as error:
            status = error.code()
            if status in BUSY and _tells_when(error):
                name += REFUSED
            else:
                failed = Failed(f"{status.name}: {error.details()}")
        response_time = milliseconds_since(due_seconds)
        if status is grpc.StatusCode.OK:
            failed = self.verdict(answer, question)
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=name,
            response_time=response_time,
            response_length=len(answer),
            response=answer,
            context={"status": status.name},
            exception=failed,
            start_time=started,
            url=self.method,
        )


@cache
def _speak_gevent() -> None:
    grpc.experimental.gevent.init_gevent()


@cache
def _channel(address: str, _number: int) -> grpc.Channel:
    # With a pool of its own it has a connection of its own.
    own = ("grpc.use_local_subchannel_pool", 1)
    return grpc.insecure_channel(address, options=(*LARGEST_MESSAGE, own))


def _tells_when(error: Any) -> bool:
    return any(key == PUSHBACK for key, _ in error.trailing_metadata() or ())
