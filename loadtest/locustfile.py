"""What Locust reads: the users, the shapes, and our options.

    locust --host http://127.0.0.1:8000

In the checkout Locust finds this file itself, for pyproject.toml names it. It cannot
take the directory: it would import each file below under its bare name, `client` and
`bentoml` among them, in the place of the packages of these names.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from locust import events, runners, stats
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.shapes.staged import Capacity, Ramp, Soak, Spike, StagedShape, Step
from loadtest.users.base import ImageUser
from loadtest.users.command_line import add_options, weights_of
from loadtest.users.http_image import HttpImage
from loadtest.users.image_classifier import ImageClassifier
from loadtest.users.open_inference_grpc import OpenInferenceGrpc
from loadtest.users.open_inference_http import OpenInferenceHttp
from loadtest.users.subject import subject_of
from loadtest.users.tf_serving_grpc import TfServingGrpc
from loadtest.users.tf_serving_http import TfServingHttp

log = logging.getLogger(__name__)

USERS: Final[Sequence[type[ImageUser]]] = (
    HttpImage,
    TfServingHttp,
    OpenInferenceHttp,
    ImageClassifier,
    TfServingGrpc,
    OpenInferenceGrpc,
)
SHAPES: Final[Sequence[type[StagedShape]]] = (Ramp, Step, Spike, Soak, Capacity)
# Three digits, to a tenth of a millisecond; Locust itself keeps two and whole ones.
DIGITS: Final = 3
FINEST: Final = 1
# Of 3 seconds in Locust: a stage ends with what its workers have told by then.
REPORT_SECONDS: Final = 0.5
# What a worker tells its master when it cannot begin, with the reason.
UNPREPARED: Final = "unprepared"

events.init_command_line_parser.add_listener(add_options)
runners.WORKER_REPORT_INTERVAL = REPORT_SECONDS
# It would tell of each image that is asked about before a run.
logging.getLogger("httpx").setLevel(logging.WARNING)


def finer(milliseconds: float) -> float:
    """A response time as the statistics keep it: to a tenth, and three digits."""
    if milliseconds < 10**DIGITS:
        whole = len(str(int(milliseconds)))
        return round(milliseconds, min(FINEST, DIGITS - whole))
    return float(f"{milliseconds:.{DIGITS}g}")


stats.bucket_response_time = finer  # type: ignore[assignment]  # whole there


@events.init.add_listener
def settle(environment: Environment, **_: Any) -> None:
    """Choose users, their weights and the shape; what is raised here ends Locust."""
    options: Any = environment.parsed_options
    try:
        _choose(environment)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if not environment.stop_timeout:
        # What is under way at the end may be what took longest.
        environment.stop_timeout = options.patience
    if isinstance(environment.runner, MasterRunner):
        environment.runner.register_message(UNPREPARED, _give_up)
    shapes = (environment.available_shape_classes or {}).values()
    named = {shape.name: shape for shape in shapes if isinstance(shape, StagedShape)}
    environment.shape_class = named.get(options.shape)
    if environment.shape_class:
        environment.shape_class.runner = environment.runner
    if _starts_at_once(environment):
        try:
            _prepare(environment)
        except Exception as error:
            raise SystemExit(_reason(environment, error)) from None


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    """Ask about every image alone, so that a wrong answer under load shows."""
    runner, options = environment.runner, environment.parsed_options
    try:
        if isinstance(runner, MasterRunner):
            # All options that are not Locust's own are sent to workers.
            chosen = [user.protocol for user in _choose(environment)]
            options.protocols = chosen  # type: ignore[union-attr]
        elif not _starts_at_once(environment):
            _prepare(environment)
    except Exception as error:
        reason = _reason(environment, error)
        environment.process_exit_code = 1
        if isinstance(runner, WorkerRunner):
            runner.send_message(UNPREPARED, {"reason": reason})
            runner.quit()
        raise StopTest(reason) from None
    if environment.shape_class:
        # Its time begins now.
        environment.shape_class.reset_time()


def _starts_at_once(environment: Environment) -> bool:
    """Whether the time of the only run begins before it starts, as `--run-time` does.

    What is prepared when it starts would be taken from that time.
    """
    options: Any = environment.parsed_options
    return isinstance(environment.runner, LocalRunner) and options.headless


def _prepare(environment: Environment) -> None:
    subject = subject_of(environment.parsed_options, _host(environment))
    for user in _choose(environment):
        user.prepare(subject)


def _host(environment: Environment) -> str:
    return (environment.host or ImageUser.host).rstrip("/")


def _reason(environment: Environment, error: Exception) -> str:
    return f"{_host(environment)} does not answer as it should: {error!r}"


def _choose(environment: Environment) -> Sequence[type[ImageUser]]:
    """Leave users with a weight, and tags that were wanted; they are returned.

    Raises:
        ValueError: Nobody is left, or the options make no sense.
    """
    options = environment.parsed_options
    weights = _weights(options)
    users: Iterable[Any] = environment.user_classes
    if isinstance(environment.runner, WorkerRunner):
        # The master has chosen, perhaps others than for the run before.
        users = (environment.available_user_classes or {}).values()
        wanted = getattr(options, "protocols", weights)
        weights = {tag: weight for tag, weight in weights.items() if tag in wanted}
    chosen: list[type[ImageUser]] = [
        user
        for user in users
        if issubclass(user, ImageUser) and user.protocol in weights
    ]
    if not chosen:
        raise ValueError("no users are left: look at --mix and --tags")
    for user in chosen:
        user.weight = weights[user.protocol]
    environment.user_classes = list(chosen)
    return chosen


def _give_up(environment: Environment, msg: Any, **_: Any) -> None:
    """A worker could not prepare itself: the run has failed."""
    log.error("worker %s: %s", msg.node_id, msg.data["reason"])
    environment.process_exit_code = 1


def _weights(options: Any) -> Mapping[str, float]:
    """By the tags of those who are to ask; raises as `_choose`."""
    every = {user.protocol for user in USERS}
    try:
        mix = weights_of(options.mix) or dict.fromkeys(every, 1.0)
    except ValueError as error:
        raise ValueError(f"--mix {options.mix}: {error}") from None
    tags, excluded = options.tags or every, options.exclude_tags or ()
    unknown = {*mix, *tags, *excluded} - every
    if unknown:
        raise ValueError(f"no such tags: {sorted(unknown)}; there are {sorted(every)}")
    if min(options.rate, options.duration, options.user_rate) < 0:
        raise ValueError("--rate, --duration and --user-rate are never below 0")
    if options.shape and not options.user_rate:
        raise ValueError("a shape needs users with a rate: --user-rate above 0")
    return {
        tag: weight
        for tag, weight in mix.items()
        if tag in tags and tag not in excluded
    }
