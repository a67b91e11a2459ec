"""The command line of Locust: the only place that knows it."""

import sys
from pathlib import Path
from typing import Final

from loadtest.bench.results import LATENCIES
from loadtest.bench.slo import parse
from loadtest.bench.target import Target
from loadtest.commands import Options

# Found beside this file and not imported, for Locust changes Python's own modules.
USERS: Final = Path(__file__).parents[1] / "locustfile.py"
BROKEN_SECONDS: Final = 2.0
RECORDER: Final = Path(__file__).with_name("recorder.py")


def locust_command(
    options: Options, target: Target, samples: Path, *, processes: int
) -> list[str]:
    """Program and arguments that run the shape once.

    Args:
        options: What is measured.
        target: Who is loaded.
        samples: Where the recorders write.
        processes: How many of Locust send.
    """
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary"]
    command += ["--locustfile", f"{USERS},{RECORDER}", "--samples", str(samples)]
    # Failed requests are for the objective to judge.
    command += ["--exit-code-on-error", "0"]
    command += ["--host", target.url, "--grpc-host", target.grpc]
    command += ["--model", target.model, "--mix", ",".join(options.protocol)]
    command += ["--shape", options.shape]
    if options.rate is not None:
        command += ["--rate", f"{options.rate:g}"]
    if options.duration is not None:
        command += ["--duration", f"{options.duration:g}"]
    if processes > 1:
        command += ["--processes", str(processes)]
    return [*command, "--slo", f"{broken_seconds(options):g}"]


def broken_seconds(options: Options) -> float:
    """The p99 at which a search for the capacity ends, in seconds.

    Far beyond the objective: where a busy machine once answers late, the search goes
    on, and the report shows what comes after the objective is missed.
    """
    terms = parse(options.slo) if options.slo else ()
    limits = [one.limit for one in terms if one.measure in LATENCIES]
    return max([BROKEN_SECONDS, *(2 * limit for limit in limits)])
