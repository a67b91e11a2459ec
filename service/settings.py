"""Every setting of the gateway: a flag, an environment variable and a TOML key each.

`--max-batch-size 8`, `BLOCKSERVE_MAX_BATCH_SIZE=8` and `max_batch_size = 8` in
`blockserve.toml` mean the same. Flags win over the environment, and that over the file.
"""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    Field,
    FilePath,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.errors import InvalidSettings

LogFormat = Literal["text", "json"]
EngineChoice = Literal["auto", "openvino", "tensorflow", "tfserving", "stub"]
# With the others each process would load the model, and they share the processor.
ENGINES_FOR_SEVERAL_WORKERS: Final = frozenset({"stub", "tfserving"})
# An IPv6 address stands in brackets.
ADDRESS: Final = re.compile(
    r"unix:.+|(dns:///)?(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):(?P<port>\d+)"
)
HIGHEST_PORT: Final = 65_535
# 1 ms to 30 s, with room below for a tiny model on a fast machine.
DURATION_BUCKETS_SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
DEFAULT_CONFIG_FILE: Final = Path("blockserve.toml")


class Settings(BaseSettings):
    """How the gateway runs; immutable once made."""

    model_config = SettingsConfigDict(
        env_prefix="BLOCKSERVE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    config: Path | None = None
    """TOML file with settings; ./blockserve.toml is read if it is there."""
    repository: Path = Path("model_repository")
    """Directory of models: REPOSITORY/NAME/VERSION/ is a SavedModel."""
    engine: EngineChoice = "auto"
    """What runs the models; auto takes OpenVINO, or TensorFlow where it must."""
    workers: int = Field(default=1, ge=1)
    """Gateway processes on the same ports, for an engine that runs elsewhere."""

    tfserving: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses of TensorFlow Serving: HOST:PORT,… unix:PATH or dns:///NAME:PORT."""
    tfserving_models: Annotated[tuple[str, ...], NoDecode] = ()
    """Models to ask it for, besides those with a directory in the repository."""
    tfserving_calls_per_replica: int = Field(default=4, ge=1)
    """Most calls that one replica of it has under way."""
    tfserving_certificates: FilePath | None = None
    """PEM certificates to trust; with them it is spoken to over TLS."""
    tfserving_hedge_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """Time after which a second replica is asked as well, to cut the tail."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port of HTTP; 0 takes a free one."""
    grpc_port: int = Field(default=8001, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""
    tls_certificate: FilePath | None = None
    """PEM certificate chain; with tls_key it turns TLS on for HTTP and gRPC."""
    tls_key: FilePath | None = None
    """PEM private key of tls_certificate."""
    token: SecretStr | None = Field(default=None, min_length=1)
    """Bearer token that requests must carry; health checks need none."""

    default_model: str | None = None
    """Model that answers /classify; not needed where there is only one."""
    versions_to_serve: int = Field(default=1, ge=1)
    """How many of a model's latest versions are loaded."""
    labels: dict[str, dict[str, int]] = {}
    """Version labels, model by model, as in --labels.inception.stable 1."""
    top_k: int = Field(default=5, ge=1)
    """Predictions an image gets where the request does not say."""

    batching: Literal["gateway", "server"] = "gateway"
    """Who makes batches of requests; server leaves it to TensorFlow Serving."""
    max_batch_size: int | None = Field(default=None, ge=1)
    """Most rows that one engine call takes; learned at warm-up if not set."""
    max_queue_delay_seconds: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Time that a free slot waits for more rows; seldom of use."""
    allowed_batch_sizes: tuple[PositiveInt, ...] | None = Field(
        default=None, min_length=1
    )
    """Sizes that batches are padded to, for engines that compile for each size."""
    max_queue_depth: int = Field(default=256, ge=1)
    """Most requests that wait for one model version; more are refused."""
    engine_slots: int | None = Field(default=None, ge=1)
    """Calls that one engine runs at a time; chosen from the processor if not set."""

    request_timeout_seconds: float = Field(default=30, gt=0, allow_inf_nan=False)
    """Time a request has where it does not say (X-Request-Timeout)."""
    max_request_timeout_seconds: float = Field(default=300, gt=0, allow_inf_nan=False)
    """Most time that a request may ask for; more is cut to this."""
    model_control: bool = False
    """Whether clients may load, unload and configure models."""
    drain_timeout_seconds: float = Field(default=30, ge=0, allow_inf_nan=False)
    """Time that accepted requests have to finish after SIGTERM."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1)
    """Largest request body."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Largest message of gRPC, in either direction."""
    max_calls_per_connection: int = Field(default=1000, ge=1)
    """Most gRPC calls that one connection has under way; the client holds more back."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Largest image, width times height, read from its header before decoding."""
    max_images_per_request: int = Field(default=64, ge=1)
    """Most images in one request."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log records to print."""
    log_format: LogFormat = "text"
    """How log records look: text for people, json with one object a line."""
    access_log_share: float = Field(default=0, ge=0, le=1)
    """Share of requests that are logged, 0 to 1; faults of the server always are."""
    tracing: bool = False
    """Whether spans of requests are exported over OTLP; OTEL_* variables say where."""
    duration_buckets_seconds: tuple[float, ...] = Field(
        default=DURATION_BUCKETS_SECONDS, min_length=1
    )
    """Upper ends of the buckets that durations are counted in, growing."""

    @field_validator("duration_buckets_seconds")
    @classmethod
    def _buckets_grow(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if bounds[0] <= 0 or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError("buckets grow from above 0, as in [0.01, 0.1, 1]")
        return bounds

    @model_validator(mode="after")
    def _tls_needs_certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            message = "tls_certificate and tls_key belong together: give both or none"
            raise ValueError(message)
        return self

    @field_validator("tfserving", "tfserving_models", mode="before")
    @classmethod
    def _commas_separate(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            return value
        parts = (part.strip() for text in texts for part in str(text).split(","))
        return tuple(dict.fromkeys(filter(None, parts)))

    @field_validator("tfserving")
    @classmethod
    def _addresses_lead_somewhere(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            found = ADDRESS.fullmatch(address)
            if found is None or not 0 < int(found["port"] or 1) <= HIGHEST_PORT:
                message = (
                    f"{address!r} is no address; expected HOST:PORT, unix:PATH or "
                    "dns:///NAME:PORT"
                )
                raise ValueError(message)
        return addresses

    @model_validator(mode="after")
    def _addresses_and_engine_belong_together(self) -> Self:
        if (self.engine == "tfserving") != bool(self.tfserving):
            message = (
                "engine tfserving and the addresses of tfserving belong together, as "
                "in --engine tfserving --tfserving localhost:8500"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _only_some_servers_make_batches(self) -> Self:
        if self.batching == "server":
            if self.engine != "tfserving":
                message = (
                    f"batching: the engine {self.engine!r} makes no batches of its "
                    "own; leave it to the gateway, or take engine tfserving"
                )
                raise ValueError(message)
            ours = {"max_batch_size", "max_queue_delay_seconds", "allowed_batch_sizes"}
            if given := sorted(ours & self.model_fields_set):
                message = (
                    f"{', '.join(given)}: with batching server the gateway makes no "
                    "batches; TensorFlow Serving's --batching_parameters_file has such "
                    "settings"
                )
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _an_embedded_engine_needs_one_process(self) -> Self:
        if self.workers > 1 and self.engine not in ENGINES_FOR_SEVERAL_WORKERS:
            message = (
                f"workers: {self.workers} processes with the engine {self.engine!r} "
                "would each load the models and fight for the processor; leave "
                "workers at 1, it uses all cores"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _model_control_needs_one_process(self) -> Self:
        if self.workers > 1 and self.model_control:
            message = (
                f"model_control: a request would reach one of {self.workers} workers "
                "only; leave workers at 1, or model_control off"
            )
            raise ValueError(message)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003, fixed signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003, as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, TOML file."""
        chosen = init_settings().get("config") or env_settings().get("config")
        if chosen is not None and not Path(chosen).is_file():
            raise InvalidSettings(f"config: there is no file {chosen}")
        path = Path(chosen or DEFAULT_CONFIG_FILE)
        try:
            file = TomlConfigSettingsSource(settings_cls, path)
        except tomllib.TOMLDecodeError as error:
            raise InvalidSettings(f"{path} is not TOML: {error}") from error
        return init_settings, env_settings, file
