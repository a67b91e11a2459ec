"""Which module may import which: layers downwards only, and no TensorFlow to serve."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

# Each layer may import those below it in this list, and itself.
LAYERS: Final = (
    ("service.cli", "service.__main__"),
    ("service.workers",),
    ("service.server",),
    ("service.app",),
    ("service.http", "service.grpc"),
    ("service.client",),
    ("service.open_inference", "service.tf_serving"),
    ("service.gateway",),
    ("service.classification",),
    ("service.prediction",),
    ("service.monitoring",),
    ("service.repository",),
    ("service.sources",),
    ("service.served_version", "service.warm_up", "service.saved_model"),
    ("service.image_signature",),
    ("service.batching", "service.decoding", "service.imaging"),
    ("service.engines",),
    ("service.event_loop",),
    ("service.telemetry",),
    ("service.model_config",),
    ("service.data_types", "service.tensors", "service.settings"),
    ("service.ports", "service.token"),
    ("service.errors",),
)
SHARED_WITH_MODELS: Final = "models.card"
# The one module of the build that runs a part of the gateway: it compares how the two
# read images, and a copy of the gateway's way would prove nothing.
COMPARES_WITH_THE_GATEWAY: Final = "models.preprocessing_parity"


def modules(package: str) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in (ROOT / package).rglob("*.py")
    }


def imports(path: Path) -> set[str]:
    """The full names of all modules and members that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> int | None:
    for depth, packages in enumerate(LAYERS):
        if any(name == p or name.startswith(f"{p}.") for p in packages):
            return depth
    return None


def test_every_module_of_the_service_has_a_layer() -> None:
    homeless = {name for name in modules("service") if layer_of(name) is None}
    assert homeless == {"service"}


@pytest.mark.parametrize("module", sorted(modules("service")))
def test_layers_import_downwards_only(module: str) -> None:
    own = layer_of(module)
    for name in imports(modules("service")[module]):
        other = layer_of(name)
        if own is not None and other is not None:
            assert other >= own, f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("module", sorted(modules("service")))
def test_the_service_imports_only_the_card_from_the_build_side(module: str) -> None:
    for name in imports(modules("service")[module]):
        if name.split(".")[0] in {"models", "loadtest", "tests"}:
            assert name.startswith(SHARED_WITH_MODELS), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(modules("models")))
def test_the_build_side_imports_nothing_from_the_service(module: str) -> None:
    foreign = {
        name
        for name in imports(modules("models")[module])
        if name.split(".")[0] in {"service", "loadtest", "tests"}
    }
    allowed = module == COMPARES_WITH_THE_GATEWAY
    assert foreign == ({"service.imaging.decode"} if allowed else set())


def loaded_by(module: str) -> set[str]:
    """In a fresh interpreter, for this one may have loaded TensorFlow already."""
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["service.app", "service.server", "service.cli"])
def test_serving_loads_no_framework(module: str) -> None:
    tops = {name.split(".")[0] for name in loaded_by(module)}
    assert not tops & {"tensorflow", "keras", "openvino", "mlxtend"}


def test_the_client_loads_nothing_that_serves() -> None:
    """Who installs it alone needs neither an engine nor a web framework."""
    names = loaded_by("service.client")
    own = {name for name in names if name.startswith(("service.", "models"))}
    assert {name for name in own if not name.startswith("service.client")} <= {
        "service.data_types",
        "service.errors",
        "service.open_inference",
        "service.open_inference.data_types",
        "service.tensors",
    }
    assert not {name.split(".")[0] for name in names} & {
        *("tensorflow", "tensorflow_serving", "keras", "openvino", "PIL"),
        *("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"),
    }


def test_networks_can_be_made_where_there_is_little_more_than_keras() -> None:
    """As on a machine with a GPU that is only lent to measure it."""
    code = """
import sys
for package in ("cyclopts", "fastapi", "matplotlib", "PIL", "prometheus_client",
                "pydantic", "pydantic_settings"):
    sys.modules[package] = None  # importing it fails
import models.architectures
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_embedded_engine_loads_no_tensorflow_and_reports_nothing(
    version_directory: Path,
) -> None:
    code = (
        "import sys, pathlib; from service import engines; "
        f"engines.load('auto', pathlib.Path({str(version_directory)!r}), slots=1); "
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert "openvino" in names
    assert "tensorflow" not in names
    assert not [name for name in names if name.startswith("openvino_telemetry")]
