"""HandleReloadConfigRequest, against what a real server answered."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.text_format import Parse
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest

from service.repository import Target
from tests.support import Served, serving, stub_version

GOLDEN = Path(__file__).parent / "golden" / "grpc_reload"
CASES = {path.stem: json.loads(path.read_text()) for path in GOLDEN.glob("*.json")}

# The real server looks wherever a request says, and waits for ever where nothing is.
MOVED = {
    "reload_add_second": "expected a base_path that ends in /second, got /staging",
    "reload_bad_path": "got /srv/does_not_exist",
    "reload_changed_base_path": "ends in /inception, got /staging",
    "reload_no_name": "ends in /, got /models/inception",
}


@asynccontextmanager
async def controlled(
    repository: Path, **settings: Any
) -> AsyncIterator[tuple[Served, Any]]:
    """A gateway whose models clients control, and the real server's client of it."""
    async with (
        serving(repository, **{"model_control": True, **settings}) as served,
        grpc.aio.insecure_channel(f"127.0.0.1:{served.running.grpc_port}") as channel,
    ):
        yield served, model_service_pb2_grpc.ModelServiceStub(channel)


def config_of(name: str = "inception", more: str = "") -> str:
    return (
        f'config {{ name: "{name}" base_path: "{"/models" if name else ""}/{name}" '
        f'model_platform: "tensorflow" {more} }}'
    )


def request_of(*configs: str) -> ReloadConfigRequest:
    text = f"config {{ model_config_list {{ {' '.join(configs)} }} }}"
    return Parse(text, ReloadConfigRequest())


async def serving_versions(served: Served) -> dict[str, list[int]]:
    models = served.running.gateway.repository.models.values()
    return {
        model.name: sorted(version.version for version in model.available)
        for model in models
    }


@pytest.mark.parametrize("case", sorted(CASES))
async def test_a_configuration_is_answered_as_by_the_real_server(
    tmp_path: Path, case: str
) -> None:
    stub_version(tmp_path, "inception")
    golden = CASES[case]
    request = Parse(golden["request"], ReloadConfigRequest())
    async with controlled(tmp_path) as (_, stub):
        try:
            response = await stub.HandleReloadConfigRequest(request)
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
        else:
            code, details = "OK", ""
            assert response.HasField("status")
            assert response.status.error_code == 0
    if case in MOVED:
        assert code == "INVALID_ARGUMENT"
        assert MOVED[case] in details
    else:
        assert (code, details) == (golden["code"], golden["details"])


async def test_labels_move_with_the_configuration(tmp_path: Path) -> None:
    for version in (1, 2):
        stub_version(tmp_path, "inception", version)
    status = GetModelStatusRequest()
    status.model_spec.name = "inception"
    status.model_spec.version_label = "stable"
    async with controlled(tmp_path, versions_to_serve=2) as (served, stub):
        for number in (1, 2):
            label = f'version_labels {{ key: "stable" value: {number} }}'
            policy = "model_version_policy { all {} }"
            request = request_of(config_of(more=f"{label} {policy}"))
            await stub.HandleReloadConfigRequest(request)
            found = await stub.GetModelStatus(status)
            assert [one.version for one in found.model_version_status] == [number]
            model = (await served.client.get("/models/inception")).json()
            assert model["labels"] == {"stable": number}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [3]),
        ("latest {}", [3]),
        ("latest { num_versions: 2 }", [2, 3]),
        ("all {}", [1, 2, 3]),
        ("specific { versions: 1 versions: 3 }", [1, 3]),
    ],
)
async def test_a_policy_says_which_versions_serve(
    tmp_path: Path, policy: str, expected: list[int]
) -> None:
    for version in (1, 2, 3):
        stub_version(tmp_path, "inception", version)
    async with controlled(tmp_path) as (served, stub):
        chosen = config_of(
            more=f"model_version_policy {{ {policy} }}" if policy else ""
        )
        await stub.HandleReloadConfigRequest(request_of(chosen))
        assert await serving_versions(served) == {"inception": expected}
        config = (await served.client.get("/v2/models/inception/config")).json()
        kind = policy.partition(" ")[0] or "latest"
        assert config["version_policy"].keys() == {kind}


async def test_what_is_not_listed_serves_no_more(tmp_path: Path) -> None:
    for name in ("inception", "second"):
        stub_version(tmp_path, name)
    async with controlled(tmp_path) as (served, stub):
        await stub.HandleReloadConfigRequest(request_of(config_of("second")))
        assert await serving_versions(served) == {"inception": [], "second": [1]}
        both = request_of(config_of("second"), config_of("inception"))
        await stub.HandleReloadConfigRequest(both)
        assert await serving_versions(served) == {"inception": [1], "second": [1]}


async def test_a_model_that_is_not_in_the_repository_changes_nothing(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path, "inception")
    async with controlled(tmp_path) as (served, stub):
        with pytest.raises(grpc.aio.AioRpcError, match="there is no model 'ghost'"):
            await stub.HandleReloadConfigRequest(request_of(config_of("ghost")))
        assert await serving_versions(served) == {"inception": [1]}


async def test_a_model_without_a_name_changes_nothing(tmp_path: Path) -> None:
    stub_version(tmp_path, "inception")
    async with controlled(tmp_path) as (served, stub):
        with pytest.raises(grpc.aio.AioRpcError, match="there is no model ''"):
            await stub.HandleReloadConfigRequest(request_of(config_of("")))
        assert await serving_versions(served) == {"inception": [1]}


async def test_a_model_that_is_still_being_unloaded_is_waited_for(
    tmp_path: Path,
) -> None:
    for name in ("inception", "second"):
        stub_version(tmp_path, name)
    async with controlled(tmp_path) as (served, stub):
        repository = served.running.gateway.repository
        both = request_of(config_of("inception"), config_of("second"))
        with repository.lease(Target(name="second")):
            await stub.HandleReloadConfigRequest(request_of(config_of()))
            second = repository.models["second"]
            drain = second.versions[1].drain
            assert drain is not None
            reload = asyncio.ensure_future(stub.HandleReloadConfigRequest(both))
            while second.unloaded:
                await asyncio.sleep(0)
            assert not drain.done()
        await reload
        assert await serving_versions(served) == {"inception": [1], "second": [1]}


async def test_clients_configure_models_only_where_they_may(tmp_path: Path) -> None:
    stub_version(tmp_path, "inception")
    async with controlled(tmp_path, model_control=False) as (served, stub):
        with pytest.raises(grpc.aio.AioRpcError, match="model_control"):
            await stub.HandleReloadConfigRequest(request_of())
        assert await serving_versions(served) == {"inception": [1]}
