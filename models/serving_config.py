"""TensorFlow Serving's configuration, in files beside the models that it is about."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf import text_format

from models.card import CardError, ModelCard, scan
from models.plan import DEFAULT_BATCH_SIZES
from proto.tensorflow.serving.file_system_storage_path_source_pb2 import (
    FileSystemStoragePathSourceConfig,
)
from proto.tensorflow.serving.model_server_config_pb2 import (
    ModelConfig,
    ModelServerConfig,
)

MODELS_FILE: Final = "models.config"
BATCHING_FILE: Final = "batching.config"
MONITORING_FILE: Final = "monitoring.config"
# Where the images of TensorFlow Serving have their models.
DEFAULT_BASE: Final = PurePosixPath("/models")
PLATFORM: Final = "tensorflow"

# A ModelServerConfig follows.
_MODELS_HEADER: Final = """\
# Written by `blockserve build`. Labels and version policies that you change here stay.
"""
# BatchingParameters. A millisecond evens the batches out where requests are few.
_BATCHING: Final = """\
# Written anew by each `blockserve build`; goes with --enable_batching.
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: 1000 }}
num_batch_threads {{ value: 4 }}
max_enqueued_batches {{ value: 64 }}
{allowed}
"""
# A MonitoringConfig.
_MONITORING: Final = """\
# Written anew by each `blockserve build`; needs --rest_api_port.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

VersionPolicy = FileSystemStoragePathSourceConfig.ServableVersionPolicy


class ServingConfigError(ValueError):
    """The file with the models is there, but cannot be read."""


def read_models(repository: Path) -> dict[str, ModelConfig]:
    """What TensorFlow Serving has been told of each model so far, by name.

    Raises:
        ServingConfigError: The file is not what a build writes.
    """
    path = repository / MODELS_FILE
    try:
        text = path.read_text(encoding="utf-8")
        config = text_format.Parse(text, ModelServerConfig())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ServingConfigError(
            f"cannot read {path} ({error}); move it away, and a new one is written"
        ) from error
    return {entry.name: entry for entry in config.model_config_list.config}


def versions_in(repository: Path) -> dict[str, list[int]]:
    """The models that have versions, and their numbers from the first to the latest.

    Raises:
        OSError: The repository cannot be read.
    """
    models = sorted(scan(repository).items())
    return {name: sorted(versions) for name, versions in models if versions}


def write_serving_config(
    repository: Path,
    *,
    base: PurePosixPath = DEFAULT_BASE,
    built: ModelCard | None = None,
    labels: Collection[str] = (),
) -> None:
    """Write the three files, each in one step.

    Args:
        repository: Directory of models.
        base: Where TensorFlow Serving sees that directory.
        built: The version that gets the labels.
        labels: Names of that version, besides its number.

    Raises:
        ServingConfigError: What is there cannot be read.
        OSError: The repository cannot be read or written to.
    """
    versions = versions_in(repository)
    new = {} if built is None else {built.name: dict.fromkeys(labels, built.version)}
    models = _models(versions, read_models(repository), new, base)
    sizes = _batch_sizes(repository, versions)
    texts = {
        MODELS_FILE: _MODELS_HEADER + text_format.MessageToString(models),
        BATCHING_FILE: _BATCHING.format(
            largest=max(sizes),
            allowed="\n".join(f"allowed_batch_sizes: {size}" for size in sizes),
        ),
        MONITORING_FILE: _MONITORING,
    }
    for name, text in texts.items():
        draft = repository / f".{name}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(repository / name)


def _models(
    versions: Mapping[str, Sequence[int]],
    before: Mapping[str, ModelConfig],
    new: Mapping[str, Mapping[str, int]],
    base: PurePosixPath,
) -> ModelServerConfig:
    config = ModelServerConfig()
    entries = config.model_config_list.config
    for name, numbers in versions.items():
        old = before.get(name, ModelConfig())
        labelled = {key: n for key, n in old.version_labels.items() if n in numbers}
        labels = {**labelled, **new.get(name, {})}
        # A label goes to another version once that is loaded; until then, requests by
        # the label need the version from before.
        needed = {*labelled.values(), *labels.values()}
        entries.add(
            name=name,
            base_path=str(base / name),
            model_platform=PLATFORM,
            model_version_policy=_policy(old.model_version_policy, numbers, needed),
            version_labels=labels,
        )
    # Models that lie elsewhere are none of ours.
    entries.extend(
        entry
        for name, entry in before.items()
        if name not in versions and PurePosixPath(entry.base_path).parent != base
    )
    return config


def _policy(
    old: VersionPolicy, numbers: Sequence[int], needed: Collection[int]
) -> VersionPolicy:
    """The latest, as many as before, and those that are needed besides.

    Where one is, all are named: a policy of the latest would drop it as soon as the
    next version appears, before this file says otherwise.
    """
    if old.HasField("all"):
        return old
    count = old.latest.num_versions or 1
    if not needed:
        return VersionPolicy(latest=VersionPolicy.Latest(num_versions=count))
    wanted = sorted({*numbers[-count:], *needed})
    return VersionPolicy(specific=VersionPolicy.Specific(versions=wanted))


def _batch_sizes(repository: Path, versions: Mapping[str, Sequence[int]]) -> list[int]:
    """Those that the latest version of any model is warmed up with."""
    sizes: set[int] = set()
    for name, numbers in versions.items():
        with suppress(CardError):  # of a version from elsewhere
            card = ModelCard.read(repository / name / str(numbers[-1]))
            sizes.update(card.batch_sizes if card else ())
    return sorted(sizes or DEFAULT_BATCH_SIZES)
