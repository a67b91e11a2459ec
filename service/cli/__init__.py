"""The command `blockserve`: one sub-command a module, imported when it is called."""

import sys
from importlib.metadata import entry_points, version

from cyclopts import App
from pydantic import ValidationError
from rich.console import Console

from service.errors import BlockserveError

COMMAND_GROUP = "blockserve.commands"


def main() -> None:
    """Run the command line; errors are told without a traceback."""
    try:
        _app()()
    except BlockserveError as error:
        _fail(error.message)
    except ValidationError as error:
        _fail("\n".join(f"{_option(e['loc'])}: {e['msg']}" for e in error.errors()))
    except KeyboardInterrupt:
        sys.exit(130)


def _app() -> App:
    app = App(
        name="blockserve",
        help="Build block-based CNNs and serve them over HTTP and gRPC.",
        version=version("blockserve"),
    )
    app.command("service.cli.serve:serve", name="serve")
    app.command("service.cli.models:models", name="models")
    app.command("service.cli.classify:classify", name="classify")
    # The build step registers its own commands: serving must not import it.
    for entry in entry_points(group=COMMAND_GROUP):
        app.command(entry.value, name=entry.name)
    return app


def _option(location: tuple[int | str, ...]) -> str:
    name = ".".join(map(str, location)) or "settings"
    return f"--{name.replace('_', '-')} (or {name} in the environment or file)"


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[red]blockserve:[/red] {message}", highlight=False)
    sys.exit(1)
