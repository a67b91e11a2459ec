"""`blockserve classify`: asks a running gateway what is in image files."""

from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.errors import BlockserveError

TIMEOUT_SECONDS: Final = 60.0


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
        url: Where the gateway listens: http://…, https://…, grpc://… or grpcs://….
        model: Model to ask; the gateway's default model if not given.
        top_k: Predictions to show for each image.
        token: Bearer token, where the gateway asks for one.
    """
    from service import client  # noqa: PLC0415, no other command needs it

    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for rank in range(1, top_k + 1):
        table.add_column(f"{rank}.")
    failures: list[str] = []
    try:
        gateway = client.Client(url, token=token, timeout_seconds=TIMEOUT_SECONDS)
    except ValueError as error:
        raise RequestFailed(f"--url: {error}") from error
    with gateway:
        for file in (image, *more_images):
            try:
                found = gateway.classify(file, model=model, top_k=top_k)
            except client.ServerUnreachable as error:
                raise RequestFailed(
                    f"{error.message}; start one with `blockserve serve`, or name it "
                    "with --url"
                ) from error
            except client.RequestFailed as error:
                failures.append(f"{file}: {error.message}")
            except OSError as error:
                failures.append(f"{file}: {error.strerror or error}")
            else:
                (predictions,) = found.results
                cells = (f"{one.label}  {one.probability:.1%}" for one in predictions)
                table.add_row(*map(escape, (str(file), *cells)))
    if table.rows:
        Console().print(table)
    if failures:
        raise RequestFailed("\n".join(failures))
