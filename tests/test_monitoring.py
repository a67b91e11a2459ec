"""A real Prometheus with the rules asks real gateways, and has data for every panel."""

import asyncio
import json
import math
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pytest
import yaml

from loadtest.harness.ports import free_port
from tests.deployment import ROOT
from tests.gateways import until_ready
from tests.monitoring import (
    PROMETHEUS,
    dashboards,
    program,
    read,
    recorded,
    rules,
    targets,
)
from tests.replicas import MODEL, THREADS_BUSY, FakeReplica, refusal, replicas
from tests.support import ANNOUNCEMENT, image_of_class, serving, started, stub_version

# Far more than it takes: about fifteen on two busy cores.
LONG_SECONDS: Final = 60.0
# Prometheus asks and concludes many times a second here.
SCRAPE, EVALUATION, WINDOW = "250ms", "500ms", "4s"
RECORDING: Final = ROOT / "tests/golden/rest/prometheus_disabled_or_enabled.json"
# Named, but without values in the recording, whose server made no batches. The label
# is that of TensorFlow Serving's sources (batching_session.cc).
QUEUING: Final = ":tensorflow:serving:batching_session:queuing_latency"
BATCHING: Final = (
    f'{QUEUING}_bucket{{thread_pool_name="a",le="100"}} 1',
    f'{QUEUING}_bucket{{thread_pool_name="a",le="+Inf"}} 2',
    f'{QUEUING}_sum{{thread_pool_name="a"}} 190',
    f'{QUEUING}_count{{thread_pool_name="a"}} 2',
    ":tensorflow:serving:batching_session:wrapped_run_count{} 1",
)


@contextmanager
def tensorflow_serving_metrics() -> Iterator[str]:
    """A server of what a real TensorFlow Serving reported; all counts grow.

    No TensorFlow Serving runs here. Each look finds as much more as was recorded, as if
    the same requests had come again.
    """
    body = json.loads(RECORDING.read_text(encoding="utf-8"))["response"]["body"]
    looks = 0

    def grown(line: str) -> str:
        name, _, value = line.rpartition(" ")
        return line if line.startswith("#") else f"{name} {float(value) * looks}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal looks
            looks += 1
            lines = [*body.splitlines(), *BATCHING]
            self.send_response(200)
            self.send_header("content-type", "text/plain")
            self.end_headers()
            self.wfile.write("".join(f"{grown(it)}\n" for it in lines).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def configuration(jobs: Mapping[str, list[str]]) -> dict[str, Any]:
    """The one that is delivered, with other targets and less patience."""
    config: dict[str, Any] = read(PROMETHEUS / "prometheus.yml")
    config["global"] = {
        "scrape_interval": SCRAPE,
        "scrape_timeout": SCRAPE,
        "evaluation_interval": EVALUATION,
    }
    config["rule_files"] = [str(PROMETHEUS / it) for it in config["rule_files"]]
    for job in config["scrape_configs"]:
        job.pop("authorization", None)
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": jobs[job["job_name"]]}]
    return config


@contextmanager
def prometheus(directory: Path, jobs: Mapping[str, list[str]]) -> Iterator[str]:
    """A real one, which asks these targets, until the block ends: its address."""
    address = f"127.0.0.1:{free_port()}"
    path = directory / "prometheus.yml"
    config = configuration({**jobs, "prometheus": [address]})
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with (
        (directory / "prometheus.log").open("w") as log,
        subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield f"http://{address}"
        finally:
            process.kill()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def ask(client: httpx.AsyncClient, path: str, **query: str) -> Any:
    answer = await client.get(f"/api/v1/{path}", params=query)
    assert answer.status_code == 200, (query, answer.text)
    return answer.json()["data"]


async def has_data(client: httpx.AsyncClient, expression: str) -> bool:
    """Whether at least one series has a number now."""
    found = (await ask(client, "query", query=expression))["result"]
    return any(not math.isnan(float(one["value"][1])) for one in found)


def as_grafana_asks(expression: str) -> str:
    """With everything chosen."""
    expression = expression.replace("$__rate_interval", WINDOW)
    return re.sub(r"\$\w+", ".*", expression)


def questions() -> dict[str, str]:
    """Every query of a panel, every choice and every recorded series."""
    asked = {str(target): as_grafana_asks(target.expression) for target in targets()}
    for rule in recorded():
        labels = ", ".join(f'{k}="{v}"' for k, v in rule.get("labels", {}).items())
        query = f"{rule['record']}{{{labels}}}"
        asked[query] = query
    for name, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                pattern = r"label_values\((.*), (\w+)\)"
                series, label = re.fullmatch(pattern, variable["query"]).groups()
                query = f"count by ({label}) ({as_grafana_asks(series)})"
                asked[f"{name} ${variable['name']}"] = query
    return asked


async def load(url: str, images: Mapping[str, bytes]) -> None:
    """Good requests for each model and bad ones, over and over."""
    async with httpx.AsyncClient(base_url=url, timeout=LONG_SECONDS) as client:
        while True:
            for model, image in images.items():
                path = f"/models/{model}/classify"
                answer = await client.post(path, content=image)
                assert answer.status_code == 200, answer.text
                await client.post(path, content=b"no image")
                hurried = {"x-request-timeout": "0.000001"}
                await client.post(path, content=image, headers=hurried)
            await client.post("/models/none/classify", content=b"")
            await asyncio.sleep(0.01)  # two cores have more to do


def sometimes_busy(replica: FakeReplica) -> None:
    """Let every third call be refused, as the real server does with few threads."""
    answer = replica.behaviour
    refuse = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, THREADS_BUSY)
    calls = 0

    async def behave(asked: Any, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        return await (answer if calls % 3 else refuse)(asked, context)

    replica.behaviour = behave


@asynccontextmanager
async def under_way(*loads: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """They run until the block ends, and must not fail."""
    tasks = [asyncio.create_task(one) for one in loads]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(it, asyncio.CancelledError) for it in ended), ended


async def wait_for_data(client: httpx.AsyncClient, pending: dict[str, str]) -> None:
    """Ask again what had no answer yet, until all had one."""
    try:
        async with asyncio.timeout(LONG_SECONDS):
            while not await _is_ready(client):
                await asyncio.sleep(0.05)
            while pending:
                for name, query in list(pending.items()):
                    if await has_data(client, query):
                        del pending[name]
    except TimeoutError:
        pytest.fail("without data:\n" + "\n".join(pending))


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository with a version that was built, and a later one that is broken."""
    directory = tmp_path / "models"
    broken = directory / "inception/2/saved_model.pb"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"broken")
    (directory / "inception/1").symlink_to(repository / "inception/1")
    return directory


@pytest.mark.prometheus
async def test_every_panel_and_every_rule_has_data(
    models: Path, tmp_path: Path
) -> None:
    """Of a gateway that runs a built model, and of another one in front.

    The latter speaks TensorFlow Serving's gRPC with the former. Its second replica has
    another model, and refuses calls now and then.
    """
    program("prometheus")
    sample = (models / "inception/1/assets.extra/sample.png").read_bytes()
    stub_version(tmp_path / "cards", MODEL)
    async with AsyncExitStack() as stack:
        flags = ("--engine", "openvino", "--repository", str(models))
        _, url, lines = stack.enter_context(started(*flags))
        announced = ANNOUNCEMENT.search("".join(lines))
        assert announced
        (replica,) = await stack.enter_async_context(replicas())
        sometimes_busy(replica)
        in_front = await stack.enter_async_context(
            serving(
                tmp_path / "cards",
                engine="tfserving",
                tfserving=(announced[2], replica.address),
                tfserving_models=("inception", MODEL),
            )
        )
        await until_ready(in_front)
        front_url = str(in_front.client.base_url)
        jobs = {
            "gateway": [it.removeprefix("http://") for it in (url, front_url)],
            "tfserving": [stack.enter_context(tensorflow_serving_metrics())],
        }
        address = stack.enter_context(prometheus(tmp_path, jobs))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=address))
        async with under_way(
            load(url, {"inception": sample}),
            load(front_url, {"inception": sample, MODEL: image_of_class(1)}),
        ):
            await wait_for_data(client, questions())
        groups = (await ask(client, "rules"))["groups"]
    evaluated = [rule for group in groups for rule in group["rules"]]
    assert len(evaluated) == len(rules())
    for rule in evaluated:
        assert rule["health"] == "ok", rule
