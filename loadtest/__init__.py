"""Measurements of the running service; most modules are commands.

    python -m loadtest                        the first eight, with their budgets
    python -m loadtest.overhead               what a request costs the gateway
    python -m loadtest.observability          what metrics, logs and traces add to that
    python -m loadtest.protocols              the same image over each protocol
    python -m loadtest.saturation             throughput, against the engine alone
    python -m loadtest.latency_under_load     batching, against fixed settings
    python -m loadtest.overload               three times as much as it can do
    python -m loadtest.decode                 images to pixels, against other libraries
    python -m loadtest.startup                start to ready, and memory
    python -m loadtest.http_servers           which server carries HTTP
    python -m loadtest.json_tensors           JSON numbers to arrays, against json.loads
    python -m loadtest.engine_options         which slots and threads for the engine
    python -m loadtest.compare                other model servers, same model
    python -m loadtest.tfserving_batching     who batches in front of TensorFlow Serving
    python -m loadtest.gpu                    what a GPU does, by runtime and precision

`harness` is what they are made of. Locust's `users` and `shapes` put load on a server
that runs, and `bench` is the command `blockserve bench`: docs/loadtest.md.

Subjects that are compared are measured in the same run and in turn, round by round, for
a shared machine is faster at some times than at others: trust the ratios. The load
comes from the same machine, so each table tells what the generator itself took.
`--quick` gives a first impression; `--output` names the folder for numbers and plots.
"""
