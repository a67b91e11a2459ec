"""The documents of the Open Inference Protocol's REST API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, RootModel

from models.card import DEFAULT_SIGNATURE
from service.open_inference.data_types import DTYPES
from service.open_inference.documents import STATES, UNAVAILABLE

Datatype = Annotated[str, Field(json_schema_extra={"enum": [*DTYPES]})]
State = Annotated[
    str, Field(json_schema_extra={"enum": [*STATES.values(), UNAVAILABLE]})
]


class _Document(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class InputParameters(_Document):
    """What a request says of an input besides."""

    binary_data_size: NonNegativeInt | None = None
    """Bytes that the values take behind the JSON, in place of `data`."""
    content_type: Literal["base64"] | None = None
    """Strings in `data` are encoded so: files of images, where these are the input."""


class InferInput(_Document):
    """An input with its values, nested as the shape is or flat in row-major order."""

    name: str
    datatype: Datatype
    """`BYTES` for files of images in place of their pixels."""
    shape: list[NonNegativeInt]
    data: list[Any] | None = None
    parameters: InputParameters = Field(default_factory=InputParameters)


class OutputParameters(_Document):
    """How a request wants an output."""

    binary_data: bool | None = None
    """Whether as bytes behind the JSON, where not as `binary_data_output` says."""
    classification: NonNegativeInt = 0
    """So many of each row's largest values, as `value:index:label`; 0 is all values."""


class RequestedOutput(_Document):
    """An output that a request asks for."""

    name: str
    parameters: OutputParameters = Field(default_factory=OutputParameters)


class RequestParameters(_Document):
    """What a request asks for besides."""

    timeout: NonNegativeInt = 0
    """Microseconds that it has, at most; 0 is what X-Request-Timeout says."""
    priority: NonNegativeInt = 0
    """1 is interactive, 2 and more are bulk; 0 is what X-Request-Priority says."""
    signature_name: str = DEFAULT_SIGNATURE
    """What to call."""
    binary_data_output: bool = False
    """Whether outputs come as bytes behind the JSON."""


class InferRequest(_Document):
    """Inputs, and which outputs are wanted; without `outputs` all are."""

    id: str = ""
    """Comes back in the answer."""
    inputs: list[InferInput]
    outputs: list[RequestedOutput] = []
    parameters: RequestParameters = Field(default_factory=RequestParameters)


class BinaryParameters(_Document):
    """Where the values of an output are."""

    binary_data_size: int
    """Bytes that they take behind the JSON."""


class InferOutput(_Document):
    """An output: its values in row-major order, or how many bytes of them there are."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any] | None = None
    parameters: BinaryParameters | None = None


class InferResponse(_Document):
    """What a model version answers; `id` is the request's, if it has one."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]


class ServerMetadata(_Document):
    """What the server is, and what it offers beyond the protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Document):
    """An input or output; -1 in its shape may be any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(_Document):
    """Inputs and outputs of `serving_default`, and the versions that serve."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(_Document):
    """That a model version serves; one that does not is answered with an error."""

    name: str
    ready: bool


class LatestVersions(_Document):
    """How many of the latest versions are loaded."""

    num_versions: int


class VersionPolicy(_Document):
    """Which versions are loaded."""

    latest: LatestVersions


class ConfiguredTensor(_Document):
    """An input or output, without the dimension of rows where requests share calls."""

    name: str
    data_type: str
    dims: list[int]


class InstanceGroup(_Document):
    """The calls that the engine runs at a time."""

    name: str
    kind: str
    count: int


class DynamicBatching(_Document):
    """How requests come to share calls."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class ModelConfiguration(_Document):
    """How a model version is run; `max_batch_size` is 0 where no call is shared."""

    name: str
    platform: str
    backend: str
    """The engine."""
    version_policy: VersionPolicy
    max_batch_size: int
    input: list[ConfiguredTensor]
    output: list[ConfiguredTensor]
    instance_group: list[InstanceGroup]
    dynamic_batching: DynamicBatching | None = None


class Duration(_Document):
    """How often something was done, and the nanoseconds that it took in all."""

    count: int
    ns: int


class InferenceStatistics(_Document):
    """Requests, and where their time went; what is not counted is zero."""

    success: Duration
    fail: Duration
    """Refused requests included."""
    queue: Duration
    compute_input: Duration
    """Decoding of images."""
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(_Document):
    """Engine calls with the same number of rows."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class VersionStatistics(_Document):
    """What a version has done since it was loaded, whatever protocol asked for it."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since 1970; 0 if there was none."""
    inference_count: int
    """Rows."""
    execution_count: int
    """Engine calls."""
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class ModelStatistics(_Document):
    """What each version has done."""

    model_stats: list[VersionStatistics]


class IndexRequest(_Document):
    """Which versions to list."""

    ready: bool = False
    """Only those that serve."""


class IndexedVersion(_Document):
    """A version; `reason` is why it does not serve, if that is known."""

    name: str
    version: str
    state: State
    reason: str


class RepositoryIndex(RootModel[list[IndexedVersion]]):
    """All versions of all models."""


class ControlRequest(_Document):
    """Besides the model's name nothing: it is loaded as it lies in the repository."""

    parameters: dict[str, Any] = {}
    """Must be empty to load; does not matter to unload."""


class Done(_Document):
    """An empty object."""
