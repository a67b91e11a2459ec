"""What a request to reload the configuration says, checked as the real server does."""

from pathlib import PurePosixPath
from typing import Final

from proto.tensorflow.serving.model_management_pb2 import ReloadConfigRequest
from proto.tensorflow.serving.model_server_config_pb2 import ModelConfig as Message
from proto.tensorflow.serving.model_server_config_pb2 import ModelType
from service.errors import InvalidRequest
from service.model_config import ModelConfig, VersionPolicy

PLATFORM: Final = "tensorflow"


def configs(request: ReloadConfigRequest) -> dict[str, ModelConfig]:
    """How the models are to be served that a request lists.

    A model lies where it lies: no request makes the gateway look elsewhere. So of its
    path only the end is asked for, which is its name in either server's directory.

    Raises:
        InvalidRequest: A model's entry is not as it should be.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise InvalidRequest(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported"
        )
    found: dict[str, ModelConfig] = {}
    for model in request.config.model_config_list.config:
        _check(model)
        if model.name in found:
            raise InvalidRequest(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        found[model.name] = ModelConfig(
            policy=_policy(model), labels=dict(model.version_labels)
        )
    return found


def _check(model: Message) -> None:
    platform = model.model_platform
    if not platform and model.model_type == ModelType.MODEL_TYPE_UNSPECIFIED:
        raise InvalidRequest(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if platform and platform != PLATFORM:
        raise InvalidRequest(
            f"Model {model.name} requests unsupported platform {platform}"
        )
    path = PurePosixPath(model.base_path)
    if not path.is_absolute() and "://" not in model.base_path:
        raise InvalidRequest(
            f"Expected model {model.name} to have an absolute path or URI; got "
            f"base_path()={model.base_path}"
        )
    if path.name != model.name:
        raise InvalidRequest(
            f"model {model.name!r} is served from the gateway's repository and no "
            f"request moves it; expected a base_path that ends in /{model.name}, got "
            f"{model.base_path}"
        )


def _policy(model: Message) -> VersionPolicy:
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return VersionPolicy(versions=frozenset(policy.specific.versions))
        case "all":
            return VersionPolicy()
    return VersionPolicy(latest=policy.latest.num_versions or 1)
