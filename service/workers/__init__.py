"""Several gateway processes on one port, under a supervisor that answers for all."""
