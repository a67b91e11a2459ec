"""Other servers with the same model, each as its own documentation has it.

Each module is the smallest application that classifies a JPEG with that server; they
share `model`, and nothing else with this project. Each runs in a virtual environment of
its own, which `loadtest.peers.install` makes; `loadtest.compare` drives them.
"""
