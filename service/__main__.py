"""`python -m service` is the command `blockserve`."""

from service.cli import main

main()
