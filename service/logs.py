"""Logging of the program, the same for each of its processes."""

import logging


def configure(level: str, *, worker: int | None = None) -> None:
    """Log to standard error from `level` on.

    Args:
        level: A level's name, as the settings spell it.
        worker: The number of this process where there are several.
    """
    who = "" if worker is None else f"[worker {worker}] "
    form = f"%(asctime)s %(levelname)-7s {who}%(name)s  %(message)s"
    logging.basicConfig(level=level.upper(), format=form)
    if level != "debug":
        # What clients do wrong is told to them, and no news for the operator.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
