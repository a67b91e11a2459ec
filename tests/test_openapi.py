"""The OpenAPI document holds what there is, and answers are as it says."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from service.http.open_inference import requests, routes
from service.http.openapi import open_inference, open_inference_models
from tests.support import Served, serving, stub_version

SCHEMAS = "#/components/schemas/"
INFER: dict[str, Any] = {
    "id": "one",
    "inputs": [
        {"name": "images", "datatype": "UINT8", "shape": [1, 4, 4, 1], "data": [0] * 16}
    ],
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    stub_version(tmp_path)
    async with serving(tmp_path, model_control=True) as running:
        yield running


@pytest.fixture
async def document(served: Served) -> Any:
    return (await served.client.get("/openapi.json")).json()


def open_inference_operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, operations in sorted(document["paths"].items()):
        for method, operation in operations.items():
            if operation["tags"] == ["Open Inference"]:
                yield method.upper(), path, operation


def strings(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    if not isinstance(node, dict | list):
        return []
    return [text for child in children for text in strings(child)]


async def test_every_endpoint_is_there(document: Any) -> None:
    assert set(document["paths"]) >= {
        "/classify",
        "/models/{name}/classify",
        "/models/{name}/versions/{version}/classify",
        "/models/{name}/labels/{label}/classify",
        "/models",
        "/models/{name}",
        "/models/{name}/graph.svg",
        "/models/{name}/summary",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/models/{name}",
        "/v1/models/{name}/labels/{label}/metadata",
        "/v1/models/{name}/versions/{version}:predict",
        "/v2/health/live",
        "/v2/health/ready",
    }


async def test_what_is_referred_to_is_there(document: Any) -> None:
    references = {
        text.removeprefix(SCHEMAS)
        for text in strings(document)
        if text.startswith(SCHEMAS)
    }
    assert references == document["components"]["schemas"].keys()


async def test_no_two_operations_have_the_same_identifier(document: Any) -> None:
    identifiers = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(identifiers) == len(set(identifiers))


async def test_open_inference_paths_are_those_that_are_answered(document: Any) -> None:
    documented = [
        (found.action, bool(found.version))
        for method, path, _ in open_inference_operations(document)
        for found in [routes.route(method, path)]
    ]
    of_versions = {action for action, versioned in documented if versioned}
    others = {action for action, versioned in documented if not versioned}
    assert others == set(get_args(routes.Action))
    assert of_versions == {"model", "ready", "config", "stats", "infer"}


async def test_open_inference_requests_are_what_is_read() -> None:
    models = open_inference_models
    for read, model in (
        (requests.Document, models.InferRequest),
        (requests._Tensor, models.InferInput),
        (requests._Output, models.RequestedOutput),
        (requests.IndexDocument, models.IndexRequest),
        (requests.ControlDocument, models.ControlRequest),
    ):
        assert set(read.__struct_fields__) == model.model_fields.keys()


@pytest.mark.parametrize("binary", [False, True])
async def test_open_inference_answers_have_the_fields_that_are_documented(
    served: Served, document: Any, binary: bool
) -> None:
    infer = {**INFER, "parameters": {"binary_data_output": binary}}
    for method, path, operation in open_inference_operations(document):
        answer = await served.client.request(
            method,
            path.format(name="stub", version=1),
            json=infer if path.endswith("/infer") else None,
        )
        described = operation["responses"]["200"]
        content_type = answer.headers["content-type"]
        assert content_type in described["content"], answer.text
        length = answer.headers.get(open_inference.JSON_LENGTH)
        reference = described["content"]["application/json"]["schema"]["$ref"]
        model = getattr(open_inference_models, reference.removeprefix(SCHEMAS))
        text = answer.content[: int(length)] if length else answer.content
        model.model_validate_json(text, strict=True, extra="forbid")
