"""TensorFlow Serving's configuration, read as TensorFlow Serving would read it."""

from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.wrappers_pb2 import DESCRIPTOR as WRAPPERS
from tensorflow_serving.config.model_server_config_pb2 import (
    ModelConfig,
    ModelServerConfig,
)

from models.card import ModelCard, scan
from models.serving_config import ServingConfigError, write_serving_config

# As session_bundle_config.proto and monitoring_config.proto of TensorFlow Serving
# define them; its package for Python leaves these two out.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "BatchingParameters": {
        "max_batch_size": (1, ".google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, ".google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, ".google.protobuf.Int64Value"),
        "num_batch_threads": (4, ".google.protobuf.Int64Value"),
        "thread_pool_name": (5, ".google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {
        "prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")
    },
}


def official(message: str) -> Any:
    """A message that TensorFlow Serving defines and its package does not have."""
    file = FileDescriptorProto(
        name="config.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append(WRAPPERS.name)
    for name, fields in FIELDS.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label, _, of = kind.rpartition(" ")
            made = described.field.add(name=field, number=number)
            made.label = getattr(
                FieldDescriptorProto, f"LABEL_{(label or 'optional').upper()}"
            )
            if of.startswith("."):
                made.type_name = of
            else:
                made.type = getattr(FieldDescriptorProto, f"TYPE_{of.upper()}")
    pool = DescriptorPool()
    pool.AddSerializedFile(WRAPPERS.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(
        pool.FindMessageTypeByName(f"tensorflow.serving.{message}")
    )()


def version(
    repository: Path, name: str, number: int, batch_sizes: tuple[int, ...] = ()
) -> ModelCard:
    card = ModelCard(
        name=name,
        version=number,
        architecture="none",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        image_input=None,
        outputs=(),
        labels=(),
        batch_sizes=batch_sizes,
    )
    card.write(repository / name / str(number))
    return card


def read(repository: Path) -> dict[str, ModelConfig]:
    text = (repository / "models.config").read_text(encoding="utf-8")
    config = text_format.Parse(text, ModelServerConfig())
    return {model.name: model for model in config.model_config_list.config}


def served(model: ModelConfig) -> str:
    return text_format.MessageToString(model.model_version_policy, as_one_line=True)


def edit(repository: Path, old: str, new: str) -> None:
    path = repository / "models.config"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_model_is_served_in_its_latest_version(tmp_path: Path) -> None:
    for name, number in (("cats", 2), ("cats", 10), ("dogs", 1)):
        version(tmp_path, name, number)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "notes").mkdir(parents=True)
    (tmp_path / ".draft-1" / "1").mkdir(parents=True)
    write_serving_config(tmp_path)
    models = read(tmp_path)
    assert list(models) == ["cats", "dogs"]
    for name, model in models.items():
        assert model.base_path == f"/models/{name}"
        assert model.model_platform == "tensorflow"
        assert served(model) == "latest { num_versions: 1 }"
        assert not model.version_labels


def test_paths_are_those_that_tensorflow_serving_sees(tmp_path: Path) -> None:
    version(tmp_path, "cats", 1)
    write_serving_config(tmp_path, base=PurePosixPath("/srv/a b"))
    assert read(tmp_path)["cats"].base_path == "/srv/a b/cats"


def test_the_gateway_takes_no_configuration_for_a_model(tmp_path: Path) -> None:
    version(tmp_path, "cats", 1)
    write_serving_config(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        *("batching.config", "cats", "models.config", "monitoring.config")
    ]
    assert list(scan(tmp_path)) == ["cats"]


def test_a_labelled_version_stays_while_later_ones_come(tmp_path: Path) -> None:
    card = version(tmp_path, "cats", 1)
    write_serving_config(tmp_path, built=card, labels=["stable"])
    version(tmp_path, "cats", 2)
    write_serving_config(tmp_path)
    card = version(tmp_path, "cats", 3)
    write_serving_config(tmp_path, built=card, labels=["canary"])
    cats = read(tmp_path)["cats"]
    assert dict(cats.version_labels) == {"stable": 1, "canary": 3}
    assert served(cats) == "specific { versions: 1 versions: 3 }"


def test_a_version_that_loses_its_label_stays_until_the_next_build(
    tmp_path: Path,
) -> None:
    """TensorFlow Serving moves a label after the new version has been loaded."""
    card = version(tmp_path, "cats", 1)
    write_serving_config(tmp_path, built=card, labels=["stable"])
    card = version(tmp_path, "cats", 2)
    write_serving_config(tmp_path, built=card, labels=["stable"])
    cats = read(tmp_path)["cats"]
    assert dict(cats.version_labels) == {"stable": 2}
    assert served(cats) == "specific { versions: 1 versions: 2 }"
    version(tmp_path, "cats", 3)
    write_serving_config(tmp_path)
    assert served(read(tmp_path)["cats"]) == "specific { versions: 2 versions: 3 }"


def test_a_label_goes_with_its_version(tmp_path: Path) -> None:
    card = version(tmp_path, "cats", 1)
    write_serving_config(tmp_path, built=card, labels=["stable"])
    (tmp_path / "cats" / "1").rename(tmp_path / "cats" / "2")
    write_serving_config(tmp_path)
    cats = read(tmp_path)["cats"]
    assert not cats.version_labels
    assert served(cats) == "latest { num_versions: 1 }"


@pytest.mark.parametrize(
    ("policy", "then"),
    [
        ("latest { num_versions: 3 }", "latest { num_versions: 3 }"),
        ("all { }", "all { }"),
    ],
)
def test_a_policy_that_was_changed_stays(
    tmp_path: Path, policy: str, then: str
) -> None:
    version(tmp_path, "cats", 1)
    write_serving_config(tmp_path)
    edit(tmp_path, "latest {\n        num_versions: 1\n      }", policy)
    version(tmp_path, "cats", 2)
    write_serving_config(tmp_path)
    assert served(read(tmp_path)["cats"]) == then


def test_models_from_elsewhere_stay_and_those_that_are_gone_go(tmp_path: Path) -> None:
    version(tmp_path, "cats", 1)
    version(tmp_path, "dogs", 1)
    write_serving_config(tmp_path)
    edit(tmp_path, "/models/cats", "/mnt/cats")
    for name in ("cats", "dogs"):
        (tmp_path / name / "1").rename(tmp_path / name / "none")
    version(tmp_path, "birds", 1)
    write_serving_config(tmp_path)
    assert {name: m.base_path for name, m in read(tmp_path).items()} == {
        "birds": "/models/birds",
        "cats": "/mnt/cats",
    }


def test_what_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    version(tmp_path, "cats", 1)
    write_serving_config(tmp_path)
    edit(tmp_path, 'model_platform: "tensorflow"', "logging_config { }")
    before = (tmp_path / "models.config").read_bytes()
    with pytest.raises(ServingConfigError, match=r"models\.config .*logging_config"):
        write_serving_config(tmp_path)
    assert (tmp_path / "models.config").read_bytes() == before


@pytest.mark.parametrize(
    ("of_models", "allowed"),
    [
        ([(1, 8, 32)], [1, 8, 32]),
        ([(1, 8, 32), (4, 64)], [1, 4, 8, 32, 64]),
        ([()], [1, 2, 4, 8, 16]),
    ],
)
def test_batches_are_padded_to_what_was_warmed_up(
    tmp_path: Path, of_models: list[tuple[int, ...]], allowed: list[int]
) -> None:
    for number, sizes in enumerate(of_models):
        version(tmp_path, f"model-{number}", 1, (1000,))
        version(tmp_path, f"model-{number}", 2, sizes)
    write_serving_config(tmp_path)
    text = (tmp_path / "batching.config").read_text(encoding="utf-8")
    parameters = text_format.Parse(text, official("BatchingParameters"))
    assert list(parameters.allowed_batch_sizes) == allowed
    assert parameters.max_batch_size.value == allowed[-1]
    assert parameters.num_batch_threads.value >= 1
    assert parameters.batch_timeout_micros.value < 10_000
    assert parameters.max_enqueued_batches.value >= parameters.num_batch_threads.value


def test_prometheus_finds_the_metrics(tmp_path: Path) -> None:
    version(tmp_path, "cats", 1)
    write_serving_config(tmp_path)
    text = (tmp_path / "monitoring.config").read_text(encoding="utf-8")
    config = text_format.Parse(text, official("MonitoringConfig")).prometheus_config
    assert config.enable
    assert config.path == "/monitoring/prometheus/metrics"
