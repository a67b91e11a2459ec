"""The command `blockserve`, one sub-command a module."""

import sys
from importlib.metadata import entry_points, version
from typing import Final, NoReturn

from cyclopts import App, CycloptsError, CycloptsPanel
from pydantic import ValidationError
from rich.console import Console

from service.cli.classify import classify
from service.cli.models import models
from service.cli.serve import serve
from service.errors import BlockserveError

COMMAND_GROUP: Final = "blockserve.commands"
WRONG_USE: Final = 2
FAILED: Final = 1
INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line; errors are told without a traceback."""
    try:
        _app()(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        if isinstance(error.__cause__, ValidationError):
            _fail(_wrong_settings(error.__cause__), WRONG_USE)
        Console(stderr=True).print(CycloptsPanel(error))
        sys.exit(WRONG_USE)
    except ValidationError as error:
        _fail(_wrong_settings(error), WRONG_USE)
    except BlockserveError as error:
        _fail(error.message, FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _app() -> App:
    app = App(
        name="blockserve",
        help="Build block-based CNNs and serve them over HTTP and gRPC.",
        version=version("blockserve"),
    )
    for command in (serve, models, classify):
        app.command(command)
    # The build step registers its own commands: serving must not import it.
    for entry in entry_points(group=COMMAND_GROUP):
        app.command(entry.load(), name=entry.name)
    return app


def _wrong_settings(error: ValidationError) -> str:
    return "\n".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
        if e["loc"]
        else e["msg"].removeprefix("Value error, ")
        for e in error.errors()
    )


def _fail(message: str, status: int) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print("[red]blockserve:[/red]", end=" ")
    console.print(message, highlight=False, markup=False)
    sys.exit(status)
