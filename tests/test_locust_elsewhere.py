"""Locust with its web UI, and with workers in other processes."""

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.deployment import services
from tests.locusts import (
    HTTP_ENTRY,
    Answer,
    answering_http,
    class_of,
    free_port,
    logged,
    running,
)

SHAPES: Final = {"Ramp", "Step", "Spike", "Soak", "Capacity"}


@pytest.fixture
def host() -> Iterator[str]:
    with answering_http(lambda _, image: Answer(class_of(image))) as address:
        yield address


def until_asked(ui: httpx.Client) -> dict[str, Any]:
    """The statistics, once there are some of users; the page asks for them so, too."""
    while True:
        told: dict[str, Any] = ui.get("/stats/requests").raise_for_status().json()
        entries = {one["name"]: one for one in told["stats"]}
        if HTTP_ENTRY in entries:
            return {**told, "entries": entries}


def web_ui(port: int) -> httpx.Client:
    # It says that it starts, and listens a moment later.
    patient = httpx.HTTPTransport(retries=10)
    base = f"http://127.0.0.1:{port}"
    return httpx.Client(base_url=base, timeout=10, transport=patient)


def test_the_web_ui_starts_and_shows_a_run(host: str) -> None:
    port = free_port()
    listening = ("--web-host", "127.0.0.1", "--web-port", str(port))
    with running(*listening, "--host", host, "--tags", "http") as process:
        logged(process, "Starting web interface")
        with web_ui(port) as ui:
            page = ui.get("/").raise_for_status().text
            for option in ("user_rate", "grpc_host", "slo", "patience"):
                assert option in page
            assert ui.get("/stats/requests").json()["stats"][0]["name"] == "Aggregated"
            form = {"user_count": "5", "spawn_rate": "5", "user_rate": "20"}
            assert ui.post("/swarm", data=form).json()["success"]
            told = until_asked(ui)
            assert told["state"] in {"spawning", "running"}
            assert told["entries"][HTTP_ENTRY]["num_failures"] == 0
            assert ui.post("/stop").json()["success"]


def test_the_web_ui_offers_the_shapes_with_its_picker(host: str) -> None:
    port = free_port()
    listening = ("--web-host", "127.0.0.1", "--web-port", str(port))
    with running(*listening, "--host", host, "--class-picker") as process:
        logged(process, "Starting web interface")
        with web_ui(port) as ui:
            page = ui.get("/").raise_for_status().text
            assert all(name in page for name in SHAPES)
            form = {"shape_class": "Spike", "user_classes": "HttpImage"}
            assert "Spike" in ui.post("/swarm", data=form).json()["message"]
            told = until_asked(ui)
            assert told["user_count"] == 20
            assert ui.post("/stop").json()["success"]


def test_a_master_has_its_workers_ask_with_the_commands_of_compose(host: str) -> None:
    """What is asked is said to the master alone."""
    port, web_port = str(free_port()), free_port()
    bind = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    ui = ("--web-host", "127.0.0.1", "--web-port", str(web_port))
    found = services()
    command = [
        argument.replace("http://gateway:8000", host)
        for argument in found["locust"]["command"]
    ]
    assert host in command
    worker = [
        "127.0.0.1" if argument == "locust" else argument
        for argument in found["locust-worker"]["command"]
    ]
    assert "127.0.0.1" in worker
    with (
        running(*command, *bind, *ui) as master,
        running(*worker, "--master-port", port) as working,
    ):
        logged(master, "1 workers connected")
        with web_ui(web_port) as client:
            form = {"user_count": "4", "spawn_rate": "4", "user_rate": "10"}
            form |= {"user_classes": "HttpImage", "host": host}
            assert client.post("/swarm", data=form).json()["success"]
            told = until_asked(client)
            assert told["entries"][HTTP_ENTRY]["num_failures"] == 0
            (one,) = told["workers"]
            assert one["state"] in {"spawning", "running"}
        master.terminate()
        logged(working, "Got quit message from master")
        assert working.wait() == 0
