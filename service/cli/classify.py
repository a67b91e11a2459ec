"""`blockserve classify`: a client of a running gateway."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.errors import BlockserveError

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS: Final = 60


class RequestFailed(BlockserveError):
    """The gateway refused a request or cannot be reached."""

    code = "request_failed"


def classify(
    image: Path,
    /,
    *more_images: Path,
    url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 3,
    token: Annotated[str | None, Parameter(env_var="BLOCKSERVE_TOKEN")] = None,
) -> None:
    """Classify image files and print what the model sees in each.

    Args:
        image: An image file.
        more_images: More of them.
        url: Where the gateway listens.
        model: Model to ask; the gateway's default model if not given.
        top_k: Predictions to show for each image.
        token: Bearer token, where the gateway asks for one.
    """
    import httpx  # noqa: PLC0415, no other command needs it

    path = f"/models/{quote(model, safe='')}/classify" if model else "/classify"
    headers = {"content-type": "application/octet-stream"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for rank in range(1, top_k + 1):
        table.add_column(f"{rank}.")
    failures: list[str] = []
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
        for file in (image, *more_images):
            try:
                predictions = _ask(client, path, file, top_k)
            except httpx.HTTPError as error:
                raise RequestFailed(
                    f"no gateway answers at {url} ({error}); start one with "
                    "`blockserve serve`, or name it with --url"
                ) from error
            except RequestFailed as error:
                failures.append(f"{file}: {error.message}")
            else:
                cells = (f"{p['label']}  {p['probability']:.1%}" for p in predictions)
                table.add_row(*map(escape, (str(file), *cells)))
    if table.rows:
        Console().print(table)
    if failures:
        raise RequestFailed("\n".join(failures))


def _ask(
    client: "httpx.Client", path: str, image: Path, top_k: int
) -> list[dict[str, Any]]:
    try:
        body = image.read_bytes()
    except OSError as error:
        raise RequestFailed(error.strerror or str(error)) from error
    answer = client.post(path, content=body, params={"top_k": top_k})
    if answer.is_error:
        raise RequestFailed(_message_of(answer))
    predictions: list[dict[str, Any]] = answer.json()["results"][0]["predictions"]
    return predictions


def _message_of(answer: "httpx.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status_code}"
