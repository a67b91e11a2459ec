"""Users over HTTP: one connection each, which is kept."""

import ssl
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Final

import httpx
from locust import FastHttpUser

from loadtest.harness.client import Request
from loadtest.harness.protocol_requests import Model
from loadtest.shapes.outcomes import REFUSED
from loadtest.users.base import Failed, ImageUser, milliseconds_since
from loadtest.users.subject import Subject

SHOWN_CHARACTERS: Final = 200


class HttpImageUser(ImageUser, FastHttpUser):
    """Posts, and counts apart what is refused with 503 and `Retry-After`.

    Attributes:
        request: What is sent for an image.
    """

    abstract = True
    # Each user would make a context of its own, which takes a millisecond in which no
    # other user sends.
    ssl_context_factory = staticmethod(cache(ssl.create_default_context))
    request: "ClassVar[staticmethod[[bytes, Model], Request]]"

    @classmethod
    def prepare(cls, subject: Subject) -> None:
        """See `ImageUser`."""
        super().prepare(subject)
        cls.connection_timeout = cls.network_timeout = subject.patience_seconds

    @classmethod
    def content(cls, image: bytes) -> Request:
        """See `ImageUser`."""
        request = cls.request(image, cls.subject.model)
        headers = {**request.headers, **cls.subject.authorization}
        return Request(request.path, headers, request.body)

    @classmethod
    def answers_alone(cls, contents: Sequence[Request]) -> list[bytes]:
        """See `ImageUser`."""
        subject = cls.subject
        patience = subject.patience_seconds
        with httpx.Client(base_url=subject.host, timeout=patience) as client:
            return [
                client.post(one.path, content=one.body, headers=dict(one.headers))
                .raise_for_status()
                .content
                for one in contents
            ]

    def ask(self) -> None:
        """Send a request, and tell Locust what became of it."""
        question = self.next_question()
        request: Request = question.content
        due_seconds = self.due_seconds()
        with self.client.post(
            request.path,
            data=request.body,  # type: ignore[arg-type]  # it sends bytes as they are
            headers=dict(request.headers),
            catch_response=True,
        ) as response:
            told = response.request_meta
            told["response_time"] = milliseconds_since(due_seconds)
            told["request_type"] = self.protocol
            told["context"] = {"status": response.status_code}
            match response.status_code:
                case 200:
                    failed = self.verdict(response.content, question)
                case 503 if "retry-after" in response.headers:
                    told["name"] += REFUSED
                    failed = None
                case 0:
                    failed = Failed(f"no answer: {response.error!r}")
                case status:
                    failed = Failed(f"{status}: {response.text[:SHOWN_CHARACTERS]}")
            if failed:
                response.failure(failed)
            else:
                response.success()
