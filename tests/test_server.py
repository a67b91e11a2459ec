"""The program as a user starts it: a process of its own, real ports, real signals."""

import asyncio
import re
import shlex
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Final

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from models.datasets import Dataset
from service.errors import InvalidSettings
from tests.support import (
    BLOCKSERVE,
    encode,
    image_of_class,
    serving,
    started,
    stub_version,
)

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


def test_the_built_model_is_served_and_the_announced_curl_line_works(
    repository: Path,
) -> None:
    with started("--repository", str(repository)) as (process, url, lines):
        (curl,) = re.findall(r"Try\s+(curl .*)", "".join(lines))
        done = subprocess.run(
            shlex.split(curl), capture_output=True, text=True, check=True
        )
        assert '"predictions":[{"label":' in done.stdout
        for path in ("/docs", "/models", "/metrics", "/healthz", "/readyz"):
            assert httpx.get(url + path).status_code == 200, path
        for asset in ("graph.svg", "summary"):
            answer = httpx.get(f"{url}/models/inception/{asset}")
            assert "inception_1a" in answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_photographs_and_odd_files_classify_without_error(repository: Path) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (30, 40, 3), np.uint8)
    bodies = {
        "12 megapixels": encode(
            np.kron(small, np.ones((100, 100, 1), np.uint8)), "JPEG"
        ),
        "CMYK": encode(Image.fromarray(small).convert("CMYK"), "JPEG"),
        "WebP": encode(small, "WEBP"),
        "16-bit PNG": encode(random.integers(0, 65536, (40, 40), np.uint16)),
    }
    with started("--repository", str(repository)) as (_, url, _):
        for kind, body in bodies.items():
            answer = httpx.post(f"{url}/classify", content=body)
            assert answer.status_code == 200, (kind, answer.text)


def test_both_engines_answer_the_same_over_http(
    repository: Path, digit_data: Dataset
) -> None:
    images = digit_data.held_out.images[::50]
    answers = []
    for engine in ("openvino", "tensorflow"):
        arguments = ("--repository", str(repository), "--engine", engine)
        with started(*arguments, "--top-k", "10") as (_, url, _):
            files = [("image", ("x.png", encode(i.squeeze(-1)))) for i in images]
            results = httpx.post(f"{url}/classify", files=files).json()["results"]
            answers.append(
                [
                    {p["label"]: p["probability"] for p in result["predictions"]}
                    for result in results
                ]
            )
    for ours, theirs in zip(*answers, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_port_in_use_is_told_without_a_traceback(
    tmp_path: Path, protocol: str
) -> None:
    stub_version(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"http": "0", "grpc": "0", protocol: str(taken.getsockname()[1])}
        done = subprocess.run(
            [
                *(*BLOCKSERVE, "serve", "--engine", "stub"),
                *("--repository", str(tmp_path)),
                *("--http-port", ports["http"], "--grpc-port", ports["grpc"]),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {ports[protocol]}" in done.stderr
    assert f"--{protocol}-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_program_cleanly(tmp_path: Path) -> None:
    stub_version(tmp_path)
    arguments = ("--engine", "stub", "--repository", str(tmp_path))
    with started(*arguments) as (process, _, _):
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in output


async def test_grpc_health_follows_readiness(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        address = f"127.0.0.1:{served.running.grpc_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            stub_version(tmp_path)
            assert (await watch.read()).status == SERVING
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == SERVING
            served.running.gateway.begin_drain()
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()


async def test_no_request_is_lost_while_versions_change(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    async with serving(tmp_path) as served:
        seen: set[int] = set()
        newest = 1

        async def client() -> None:
            while 5 not in seen:
                answer = await served.client.post(
                    "/classify", content=image_of_class(4)
                )
                assert answer.status_code == 200, answer.text
                seen.add(answer.json()["version"])

        async def publisher() -> None:
            nonlocal newest
            while newest < 5:
                newest += 1
                draft = stub_version(tmp_path / ".draft", version=newest)
                draft.rename(tmp_path / "stub" / str(newest))
                while newest not in seen:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(client() for _ in range(8)), publisher())
        assert seen == {1, 2, 3, 4, 5}


async def test_tls_guards_both_ports(
    tmp_path: Path, certificate: dict[str, Path]
) -> None:
    stub_version(tmp_path / "repository")
    async with serving(tmp_path / "repository", **certificate) as served:
        trusted = certificate["tls_certificate"]
        context = ssl.create_default_context(cafile=trusted)
        url = f"https://127.0.0.1:{served.running.http_port}/classify"
        async with httpx.AsyncClient(verify=context) as client:
            answer = await client.post(url, content=image_of_class(2))
            assert answer.json()["results"][0]["predictions"][0]["label"] == "c"
        with pytest.raises(httpx.TransportError):
            await served.client.get("/healthz")
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{served.running.grpc_port}",
            grpc.ssl_channel_credentials(trusted.read_bytes()),
        ) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == SERVING


async def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(InvalidSettings, match="PEM"):
        async with serving(tmp_path, tls_certificate=wrong, tls_key=wrong):
            pass
