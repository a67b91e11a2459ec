"""`blockserve models`: what a repository directory holds."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.card import CardError, ModelCard, scan
from service.errors import InvalidSettings
from service.settings import Settings


def models(
    *,
    repository: Annotated[Path | None, Parameter(name=["--repository"])] = None,
) -> None:
    """List the models and versions in the repository.

    Args:
        repository: Directory of models; the setting `repository` if not given.
    """
    root = repository or Settings().repository
    found = scan(root) if root.is_dir() else {}
    if not found:
        raise InvalidSettings(
            f"repository: {root} holds no model; `blockserve build` makes one"
        )
    table = Table(title=str(root), box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("model", "version", "architecture", "input"):
        table.add_column(heading)
    table.add_column("params", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("created")
    for name, versions in sorted(found.items()):
        for number, path in sorted(versions.items(), reverse=True):
            table.add_row(name, str(number), *_describe(path))
    Console().print(table)


def _describe(version_directory: Path) -> tuple[str, ...]:
    try:
        card = ModelCard.read(version_directory)
    except CardError as error:
        return (f"[red]{error}[/red]",)
    if card is None:
        return ("no model card",)
    image = card.image_input
    return (
        card.architecture,
        f"{image.height}×{image.width}×{image.channels}" if image else "tensors",
        f"{card.parameters:,}" if card.parameters is not None else "",
        f"{card.accuracy[0].value:.1%}" if card.accuracy else "",
        f"{card.created:%Y-%m-%d}",
    )
