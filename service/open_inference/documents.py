"""What the protocol tells of the server and of its models, as JSON has it.

gRPC's messages have the same names and nesting.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

from models.card import DEFAULT_SIGNATURE
from service.engines import Engine
from service.errors import InvalidRequest
from service.gateway import Gateway
from service.open_inference.data_types import BYTES, datatype_of
from service.repository import Model, Repository, Target, VersionState
from service.served_version import ServedVersion
from service.settings import Settings
from service.telemetry.series import Histogram
from service.telemetry.statistics import Tally
from service.tensors import Signature, TensorSpec

SERVER: Final = "blockserve"
VERSION: Final = version(SERVER)
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
PLATFORM: Final = "tensorflow_savedmodel"
NANOSECONDS: Final = 1e9
MICROSECONDS: Final = 1e6
MILLISECONDS: Final = 1e3
INT64_DIGITS: Final = 18
STATES: Final[Mapping[VersionState, str]] = {
    VersionState.AVAILABLE: "READY",
    VersionState.LOADING: "LOADING",
    VersionState.UNLOADING: "UNLOADING",
}
UNAVAILABLE: Final = "UNAVAILABLE"

Document = dict[str, Any]


def target(name: str, version: str) -> Target:
    """What a request means by a model's name and version.

    Args:
        name: The model's; empty is the only one, or all.
        version: Its number or one of its labels; empty is the latest.
    """
    if version.isascii() and version.isdecimal() and len(version) <= INT64_DIGITS:
        return Target(name=name or None, version=int(version))
    return Target(name=name or None, label=version or None)


def server() -> Document:
    """What the server is."""
    return {
        "name": SERVER,
        "version": VERSION,
        "extensions": list(EXTENSIONS),
    }


def model(repository: Repository, asked: Target) -> Document:
    """The inputs and outputs of a model version, and which versions there are.

    Raises:
        BlockserveError: It is not served.
    """
    with repository.lease(asked) as served:
        available = repository.model(asked.name).available
        signature = _default(served)
        return {
            "name": served.name,
            "versions": [str(one.version) for one in reversed(available)],
            "platform": PLATFORM,
            "inputs": [_tensor(spec) for spec in signature.inputs.values()],
            "outputs": [_tensor(spec) for spec in signature.outputs.values()],
        }


def ready(repository: Repository, asked: Target) -> Document:
    """That a model version is ready.

    Raises:
        BlockserveError: It is not served.
    """
    with repository.lease(asked) as served:
        return {"name": served.name, "ready": True}


def configuration(gateway: Gateway, asked: Target) -> Document:
    """How a model version is run.

    Raises:
        BlockserveError: It is not served.
    """
    with gateway.repository.lease(asked) as served:
        signature = _default(served)
        batched = signature.batched
        document: Document = {
            "name": served.name,
            "platform": PLATFORM,
            "backend": served.engine.kind,
            "version_policy": _version_policy(gateway.repository.model(asked.name)),
            "max_batch_size": _max_batch_size(served, signature, gateway.settings),
            "input": [_configured(s, batched) for s in signature.inputs.values()],
            "output": [_configured(s, batched) for s in signature.outputs.values()],
            "instance_group": [_instances(served.engine)],
        }
        if batched:
            state = served.batchers[signature.name].state
            delay_seconds = gateway.settings.max_queue_delay_seconds
            document["dynamic_batching"] = {
                "preferred_batch_size": [state.batch_size_limit_rows],
                "max_queue_delay_microseconds": round(delay_seconds * MICROSECONDS),
            }
        return document


def statistics(repository: Repository, asked: Target) -> Document:
    """What model versions have done; those of all models where none is named.

    Raises:
        BlockserveError: A model was named, but is not served.
    """
    return {"model_stats": [_statistics(one) for one in _served(repository, asked)]}


def index(repository: Repository, *, only_ready: bool) -> list[Document]:
    """All versions of all models, with their states."""
    return [
        {
            "name": model.name,
            "version": str(version.number),
            "state": STATES.get(version.state, UNAVAILABLE),
            "reason": version.error or ("unloaded" if model.unloaded else ""),
        }
        for model in repository.models.values()
        for version in model.versions.values()
        if not only_ready or version.state is VersionState.AVAILABLE
    ]


async def load(gateway: Gateway, name: str, parameters: Iterable[str]) -> None:
    """Load a model.

    Args:
        gateway: What serves.
        name: The model's.
        parameters: Names of what the request says besides.

    Raises:
        InvalidRequest: Clients may not, or the request brings a model of its own.
        BlockserveError: There is no such model, or it cannot be loaded.
    """
    gateway.check_model_control()
    if unknown := sorted(parameters):
        raise InvalidRequest(
            f"{', '.join(unknown)}: a model is loaded as it lies in the repository; "
            "send no parameters"
        )
    await gateway.repository.load(name)


async def unload(gateway: Gateway, name: str) -> None:
    """Unload a model.

    Raises:
        InvalidRequest: Clients may not.
        NotFound: There is no such model.
    """
    gateway.check_model_control()
    await gateway.repository.unload(name)


def _default(served: ServedVersion) -> Signature:
    """What a request calls that names no signature."""
    return served.signature(DEFAULT_SIGNATURE)[0]


def _version_policy(model: Model) -> Document:
    policy = model.config.policy
    if policy.versions is not None:
        return {"specific": {"versions": sorted(policy.versions)}}
    if policy.latest is None:
        return {"all": {}}
    return {"latest": {"num_versions": policy.latest}}


def _tensor(spec: TensorSpec) -> Document:
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": [-1 if size is None else size for size in spec.shape],
    }


def _configured(spec: TensorSpec, batched: bool) -> Document:
    tensor = _tensor(spec)
    datatype = tensor["datatype"]
    return {
        "name": spec.name,
        "data_type": "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}",
        "dims": tensor["shape"][1:] if batched else tensor["shape"],
    }


def _instances(engine: Engine) -> Document:
    # Whether that is on a GPU is the engine's affair, or that of a server elsewhere.
    return {"name": engine.kind, "kind": "KIND_AUTO", "count": engine.slots}


def _max_batch_size(
    served: ServedVersion, signature: Signature, settings: Settings
) -> int:
    """Rows in one engine call at most; 0 where requests do not share any."""
    if not signature.batched:
        return 0
    state = served.batchers[signature.name].state
    return settings.max_batch_size or state.curve[-1].batch_size_rows


def _served(repository: Repository, asked: Target) -> Iterator[ServedVersion]:
    if asked.name is None:
        for one in repository.models.values():
            yield from one.available
        return
    with repository.lease(asked) as served:  # or say why it is not served
        if asked.version is None and asked.label is None:
            yield from repository.model(asked.name).available
        else:
            yield served


def _statistics(served: ServedVersion) -> Document:
    metrics = served.metrics
    numbers = metrics.statistics
    nothing = _duration(Tally())
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": round(numbers.last_inference_at * MILLISECONDS),
        "inference_count": numbers.rows,
        "execution_count": sum(tally.count for tally in numbers.batches.values()),
        "inference_stats": {
            "success": _duration(numbers.success),
            "fail": _duration(numbers.failure),
            "queue": _observed(metrics.queue_seconds),
            "compute_input": _observed(metrics.decode_seconds),
            "compute_infer": _duration(numbers.inference),
            "compute_output": _observed(metrics.encode_seconds),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": nothing,
                "compute_infer": _duration(tally),
                "compute_output": nothing,
            }
            for rows, tally in sorted(numbers.batches.items())
        ],
    }


def _duration(tally: Tally) -> Document:
    return {"count": tally.count, "ns": round(tally.seconds * NANOSECONDS)}


def _observed(histogram: Histogram) -> Document:
    return {"count": histogram.count, "ns": round(histogram.sum * NANOSECONDS)}
