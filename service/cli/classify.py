"""`blockserve classify`: a client of a running gateway."""

from pathlib import Path
from typing import Annotated, Any

import httpx
from cyclopts import Parameter
from cyclopts.types import ExistingFile
from rich.console import Console
from rich.table import Table

from service.errors import BlockserveError


class RequestFailed(BlockserveError):
    """The gateway refused a request or cannot be reached."""

    code = "request_failed"


def classify(
    *images: ExistingFile,
    url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 3,
    token: Annotated[str | None, Parameter(env_var="BLOCKSERVE_TOKEN")] = None,
) -> None:
    """Classify image files and print what the model sees in each.

    Args:
        images: Image files.
        url: Where the gateway listens.
        model: Model to ask; the gateway's default model if not given.
        top_k: Predictions to show for each image.
        token: Bearer token, where the gateway asks for one.
    """
    if not images:
        raise RequestFailed("name at least one image file, as in classify digit.png")
    path = f"/models/{model}/classify" if model else "/classify"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    table = Table()
    table.add_column("image")
    for rank in range(1, top_k + 1):
        table.add_column(f"{rank}.")
    failures = 0
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for image in images:
            try:
                predictions = _ask(client, path, image, top_k)
            except RequestFailed as error:
                failures += 1
                table.add_row(str(image), f"[red]{error.message}[/red]")
            else:
                cells = (f"{p['label']}  {p['probability']:.1%}" for p in predictions)
                table.add_row(str(image), *cells)
    Console().print(table)
    if failures:
        raise RequestFailed(f"{failures} of {len(images)} images failed")


def _ask(client: httpx.Client, path: str, image: Path, top_k: int) -> list[Any]:
    try:
        answer = client.post(
            path,
            content=image.read_bytes(),
            params={"top_k": top_k},
            headers={"content-type": "application/octet-stream"},
        )
    except httpx.HTTPError as error:
        message = (
            f"no gateway answers at {client.base_url} ({error}); start one with "
            "`blockserve serve` or name it with --url"
        )
        raise RequestFailed(message) from error
    if answer.is_error:
        raise RequestFailed(_message_of(answer))
    predictions: list[Any] = answer.json()["results"][0]["predictions"]
    return predictions


def _message_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
