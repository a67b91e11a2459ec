"""The OpenAPI document holds what there is."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Served, serving, stub_version

SCHEMAS = "#/components/schemas/"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    stub_version(tmp_path)
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def document(served: Served) -> Any:
    return (await served.client.get("/openapi.json")).json()


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
