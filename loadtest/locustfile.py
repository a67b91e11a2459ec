"""What Locust reads: the users, the shapes, and our options.

    locust --host http://127.0.0.1:8000

In the checkout Locust finds this file itself, for pyproject.toml names it. It cannot
take the directory: it would import each file below under its bare name, `client` and
`bentoml` among them, in the place of the packages of these names.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from locust import events, runners, stats
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.staged import Capacity, Ramp, Soak, Spike, StagedShape, Step
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
    _choose(environment)
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


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Ask about every image alone, so that a wrong answer under load shows."""
    if isinstance(environment.runner, MasterRunner):
        return
    host = (environment.host or ImageUser.host).rstrip("/")
    try:
        subject = subject_of(environment.parsed_options, host)
        # A worker has the master's options only now.
        for user in _choose(environment):
            user.prepare(subject)
    except Exception as error:
        reason = f"{host} does not answer as it should: {error!r}"
        environment.process_exit_code = 1
        if isinstance(environment.runner, WorkerRunner):
            environment.runner.send_message(UNPREPARED, {"reason": reason})
            environment.runner.quit()
        raise StopTest(reason) from None
    if environment.shape_class:
        # Its time begins now.
        environment.shape_class.reset_time()


def _choose(environment: Environment) -> Sequence[type[ImageUser]]:
    """Leave users with a weight, and tags that were wanted; they are returned."""
    weights = _weights(environment.parsed_options)
    chosen: list[type[ImageUser]] = [
        user
        for user in environment.user_classes
        if issubclass(user, ImageUser) and user.protocol in weights
    ]
    if not chosen:
        raise SystemExit("no users are left: look at --mix and --tags")
    for user in chosen:
        user.weight = weights[user.protocol]
    environment.user_classes = list(chosen)
    return chosen


def _give_up(environment: Environment, msg: Any, **_: Any) -> None:
    """A worker could not prepare itself: the run has failed."""
    log.error("worker %s: %s", msg.node_id, msg.data["reason"])
    environment.process_exit_code = 1


def _weights(options: Any) -> Mapping[str, float]:
    """By the tags of those who are to ask."""
    every = {user.protocol for user in USERS}
    try:
        mix = weights_of(options.mix) or dict.fromkeys(every, 1.0)
    except ValueError as error:
        raise SystemExit(f"--mix {options.mix}: {error}") from None
    tags, excluded = options.tags or every, options.exclude_tags or ()
    unknown = {*mix, *tags, *excluded} - every
    if unknown:
        raise SystemExit(f"no such tags: {sorted(unknown)}; there are {sorted(every)}")
    if min(options.rate, options.duration, options.user_rate) < 0:
        raise SystemExit("--rate, --duration and --user-rate are never below 0")
    if options.shape and not options.user_rate:
        raise SystemExit("a shape needs users with a rate: --user-rate above 0")
    return {
        tag: weight
        for tag, weight in mix.items()
        if tag in tags and tag not in excluded
    }
