"""Write the dashboards: `python -m deploy.grafana.boards`, or `make dashboards`."""

from collections.abc import Mapping
from typing import Final

from deploy.grafana.boards.batching import batching
from deploy.grafana.boards.board import DIRECTORY, written
from deploy.grafana.boards.overview import overview
from deploy.grafana.boards.replicas import replicas
from deploy.grafana.boards.tfserving import tfserving
from deploy.grafana.boards.versions import versions

BOARDS: Final = (overview, batching, versions, replicas, tfserving)


def texts() -> Mapping[str, str]:
    """Every dashboard's text, by the name of its file."""
    return {f"{make.__name__}.json": written(make()) for make in BOARDS}


def main() -> None:
    """Write them beside what else Grafana reads."""
    for name, text in texts().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
