"""Make or complete a virtual environment for each peer.

    python -m loadtest.peers.install DIRECTORY [--peers NAME,…]

Each is DIRECTORY/NAME and has the Python that runs this.
"""

import subprocess
import venv
from pathlib import Path

import cyclopts

from loadtest.peers.catalogue import PEERS, chosen, interpreter


def main(directory: Path, /, *, peers: str = ",".join(PEERS)) -> None:
    """Install the peers' pinned packages.

    Args:
        directory: Where the environments go.
        peers: Names, separated by commas.
    """
    failed = [name for name in chosen(peers) if not _install(directory, name)]
    if failed:
        raise SystemExit(f"not installed: {', '.join(failed)}")


def _install(directory: Path, name: str) -> bool:
    python = interpreter(directory, name)
    if not python.exists():
        venv.create(directory / name, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet"]
    command += PEERS[name].requirements
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603, pip


if __name__ == "__main__":
    cyclopts.run(main)
