"""What can be said on Locust's command line, or in its web UI, besides its own."""

import os
from collections.abc import Mapping
from typing import Any, Final

from loadtest.shapes import SHAPES
from loadtest.users.subject import IMAGES

GRPC_HOST: Final = "127.0.0.1:8001"
PATIENCE_SECONDS: Final = 10.0
USER_RATE: Final = 1.0
SLO_SECONDS: Final = 0.1


def add_options(parser: Any, **_: Any) -> None:
    """Tell Locust's parser of ours."""
    parser.add_argument("--model", default="inception", help="Its name")
    parser.add_argument(
        "--grpc-host",
        metavar="HOST:PORT",
        default=GRPC_HOST,
        help=f"Where it answers gRPC (default: {GRPC_HOST}); --host is for HTTP",
    )
    parser.add_argument(
        "--images",
        choices=("", *IMAGES),
        default="",
        help="What is sent (default: digits to a model of grey images, else "
        "photographs)",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("BLOCKSERVE_TOKEN", ""),
        is_secret=True,
        help="Its bearer token (default: the variable BLOCKSERVE_TOKEN)",
    )
    parser.add_argument(
        "--mix",
        metavar="TAG=WEIGHT,…",
        default="",
        include_in_web_ui=False,
        help="Only users with these tags, in these proportions, as in http=3,grpc=1",
    )
    parser.add_argument(
        "--user-rate",
        type=float,
        metavar="R",
        default=USER_RATE,
        help="Requests a second of each user, sent when they are due (default: 1); "
        "0 is as fast as answers come",
    )
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=PATIENCE_SECONDS,
        help=f"What takes longer has failed (default: {PATIENCE_SECONDS:g})",
    )
    parser.add_argument(
        "--shape",
        choices=("", *SHAPES),
        default="",
        include_in_web_ui=False,
        help="A table of stages, in place of --users and --spawn-rate",
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="R",
        default=0.0,
        help="Requests a second in its highest stage (default: the table's)",
    )
    parser.add_argument(
        "--duration",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="How long all its stages take (default: the table's)",
    )
    parser.add_argument(
        "--slo",
        type=float,
        metavar="SECONDS",
        default=SLO_SECONDS,
        help="What 99 of 100 answers may take, where all but one in 100 are answered "
        f"(default: {SLO_SECONDS:g})",
    )
    parser.add_argument(
        "--stages-file",
        metavar="FILE",
        default="",
        include_in_web_ui=False,
        help="Where to write what was measured in each stage, as JSON",
    )


def weights_of(mix: str) -> Mapping[str, float]:
    """Weights by tags, as in `http=3,grpc=1`; a tag alone weighs 1.

    Raises:
        ValueError: It cannot be read so.
    """
    weights = {}
    for part in filter(None, mix.split(",")):
        tag, _, weight = part.strip().partition("=")
        weights[tag] = float(weight or 1)
        if not weights[tag] > 0:
            raise ValueError(f"a weight is a number above 0, not {weight}: {part}")
    return weights
