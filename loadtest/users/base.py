"""What users of all protocols do: they are paced, ask in turn, and look at answers."""

import random
from abc import abstractmethod
from collections.abc import Sequence
from itertools import cycle
from time import perf_counter
from typing import Any, ClassVar

from locust import User
from locust.env import Environment

from loadtest.shapes.outcomes import MILLISECONDS
from loadtest.users.pacing import Pace
from loadtest.users.subject import Question, Subject


class Failed(Exception):
    """Why a request counts as a failure; the same reason gives the same text."""


class ImageUser(User):
    """Asks about one image after the other.

    Attributes:
        protocol: Its tag, and the type of its requests in the statistics.
        best: The class that an answer tells.
        questions: What it asks; `prepare` settles it.
        subject: Who is asked; `prepare` settles that, too.
    """

    abstract = True
    host = "http://127.0.0.1:8000"
    protocol: ClassVar[str]
    best: "ClassVar[staticmethod[[bytes], int]]"
    questions: ClassVar[Sequence[Question[Any]]]
    subject: ClassVar[Subject]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._pace: Pace | None = None
        # Each begins elsewhere, so that not all send the same at the same time.
        self._questions = cycle(random.sample(self.questions, len(self.questions)))

    @classmethod
    def prepare(cls, subject: Subject) -> None:
        """Ask about each image alone, and keep what is asked, and the answer.

        Raises:
            Exception: There was no answer, or none that can be read.
        """
        cls.subject = subject
        contents = [cls.content(image) for image in subject.images]
        answers = cls.answers_alone(contents)
        cls.questions = [
            Question(content, cls.best(answer))
            for content, answer in zip(contents, answers, strict=True)
        ]

    @classmethod
    @abstractmethod
    def content(cls, image: bytes) -> Any:
        """What is sent for an image to the subject."""

    @classmethod
    @abstractmethod
    def answers_alone(cls, contents: Sequence[Any]) -> list[bytes]:
        """What is answered to each, asked one after the other."""

    def on_start(self) -> None:
        """Wait for the first moment: a random one, or all would send at once."""
        rate: float = self.environment.parsed_options.user_rate
        if rate:
            first = perf_counter() + random.uniform(0, 1 / rate)  # noqa: S311, no secret
            self._pace = Pace(1 / rate, first_due_seconds=first)
            self.wait()

    def wait_time(self) -> float:
        """Seconds until the next request is due."""
        return self._pace.next(perf_counter()) if self._pace else 0.0

    def next_question(self) -> Question[Any]:
        """What is asked now."""
        return next(self._questions)

    def due_seconds(self) -> float:
        """The moment from which the response time of the next request counts."""
        return self._pace.due_seconds if self._pace else perf_counter()

    def verdict(self, answer: bytes, question: Question[Any]) -> Failed | None:
        """What is wrong with an answer, if anything is."""
        try:
            right = type(self).best(answer) == question.expected
        except Exception as error:
            return Failed(f"an answer that cannot be read: {type(error).__name__}")
        return None if right else Failed("wrong answer: another class than alone")


def milliseconds_since(moment_seconds: float) -> float:
    """As Locust counts response times."""
    return (perf_counter() - moment_seconds) * MILLISECONDS
