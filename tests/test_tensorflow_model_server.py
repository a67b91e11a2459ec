"""The gateway in front of the real TensorFlow Serving, where there is one.

`deploy/tfserving.sh` starts it. What it answered once, it has to answer through the
gateway, too.
"""

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from models.serving_config import write_serving_config
from tests import test_tf_serving_grpc, test_tf_serving_rest
from tests.deployment import ROOT, services
from tests.support import Served, serving

pytestmark = pytest.mark.tensorflow_model_server

if shutil.which("tensorflow_model_server") is None:
    pytest.skip("there is no tensorflow_model_server", allow_module_level=True)

READY_SECONDS = 120
GOLDEN = Path(__file__).parent / "golden"


def healthy(rest_port: int) -> bool:
    """What Compose's health check says."""
    _, *command, script = services()["tfserving"]["healthcheck"]["test"]
    here = script.replace("/8501", f"/{rest_port}")
    done = subprocess.run([*command, here], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def started(repository: Path, *flags: str) -> Iterator[str]:
    """TensorFlow Serving with a repository: where it listens for gRPC."""
    with ExitStack() as stack:
        free = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "12"
        ]
        port, rest_port = (one.getsockname()[1] for one in free)
    log = repository.parent / "tensorflow_model_server.log"
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            [
                *(ROOT / "deploy/tfserving.sh", repository),
                *(f"--port={port}", f"--rest_api_port={rest_port}", *flags),
            ],
            stdout=written,
            stderr=written,
        ) as server,
    ):
        try:
            until = monotonic() + READY_SECONDS
            while not healthy(rest_port):
                assert server.poll() is None, log.read_text(encoding="utf-8")
                assert monotonic() < until, log.read_text(encoding="utf-8")
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


@asynccontextmanager
async def gateway(repository: Path, address: str) -> AsyncIterator[Served]:
    """A gateway in front, as soon as it is ready."""
    labels = {"inception": {"stable": 1}}
    async with serving(
        repository, engine="tfserving", tfserving=(address,), labels=labels
    ) as served:
        until = monotonic() + READY_SECONDS
        while (answer := await served.client.get("/readyz")).status_code != 200:
            assert monotonic() < until, answer.text
        yield served


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """The model that the recordings were made with."""
    repository = tmp_path_factory.mktemp("golden") / "repository"
    shutil.copytree(GOLDEN / "model", repository)
    write_serving_config(repository)
    with started(repository) as address:
        async with gateway(repository, address) as served:
            yield served


# As where the gateway runs the model itself; here with the `served` above.
test_a_call = test_tf_serving_grpc.test_a_call_is_answered_as_by_the_real_server
test_where_a_call_differs = (
    test_tf_serving_grpc.test_where_we_answer_otherwise_we_say_what_is_wrong
)
test_a_request = test_tf_serving_rest.test_a_request_is_answered_as_by_the_real_server
test_where_a_request_differs = (
    test_tf_serving_rest.test_where_we_answer_otherwise_we_say_what_is_wrong
)


async def test_a_build_is_warmed_up_and_served(
    repository: Path, tmp_path: Path
) -> None:
    """With batches formed there as well, padded to what it was warmed up with."""
    copied = shutil.copytree(repository, tmp_path / "repository")
    sample = (copied / "inception/1/assets.extra/sample.png").read_bytes()
    batching = f"--batching_parameters_file={copied}/batching.config"
    async with serving(copied, engine="openvino") as embedded:
        expected = (await embedded.client.post("/classify", content=sample)).json()
    with started(copied, "--enable_batching", batching) as address:
        async with gateway(copied, address) as served:
            answer = (await served.client.post("/classify", content=sample)).json()
            (best, *_), (wanted, *_) = (
                one["results"][0]["predictions"] for one in (answer, expected)
            )
            assert best["label"] == wanted["label"]
            assert best["probability"] == pytest.approx(wanted["probability"], abs=1e-4)
