"""Write the modules that the `.proto` files of this package describe.

Run as `python -m proto.generate`. A `.proto` file yields a `*_pb2.py` and its types, a
`*_pb2.pyi`; one with services also yields a `*_pb2_grpc.py`. The `.proto` files import
each other by the path from the repository root, well-known types included: so the
generated modules import each other from `proto`, and none from `google.protobuf`.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

PACKAGE: Final = Path(__file__).parent
_PATTERNS: Final = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")

_DEFAULT_POOL_IMPORT: Final = (
    "from google.protobuf import descriptor_pool as _descriptor_pool\n"
)
_DEFAULT_POOL: Final = "_descriptor_pool.Default()"
_OWN_POOL_IMPORT: Final = "from proto.pool import POOL as _POOL\n"
_OWN_POOL: Final = "_POOL"

# What the compiler writes is not all typed as strictly as this package.
_HEADERS: Final = {
    "_pb2.pyi": '# mypy: disable-error-code="type-arg"\n',
    "_pb2_grpc.py": "# mypy: ignore-errors\n",
}


class GenerateError(RuntimeError):
    """A `.proto` file is refused, or the compiler wrote what is not known here."""


def generate(package: Path = PACKAGE) -> dict[Path, str]:
    """Compile the `.proto` files below `package`.

    Returns:
        The text of each generated file, by its path.

    Raises:
        GenerateError: A file is refused; the message has the compiler's own words.
    """
    root = package.parent
    with TemporaryDirectory() as directory:
        output = Path(directory)
        _compile(root, output, sorted(package.rglob("*.proto")))
        return {
            root / path.relative_to(output): _adapt(path)
            for path in generated_files(output)
        }


def generated_files(directory: Path) -> list[Path]:
    """The generated files below `directory`, whether they are up to date or not."""
    return sorted(path for glob in _PATTERNS for path in directory.rglob(glob))


def _compile(root: Path, output: Path, files: Iterable[Path]) -> None:
    descriptors = output / "descriptors"
    options = [f"--{kind}_out={output}" for kind in ("python", "pyi")]
    _protoc(root, [*options, f"--descriptor_set_out={descriptors}"], files)
    described = FileDescriptorSet.FromString(descriptors.read_bytes()).file
    for file in described:
        for imported in file.dependency:
            if not (root / imported).is_file():
                raise GenerateError(
                    f"{file.name} imports {imported}, which our pool does not have; "
                    f"define what it needs below {root.name}/ and import that"
                )
    with_services = [root / file.name for file in described if file.service]
    if with_services:
        _protoc(root, [f"--grpc_python_out={output}"], with_services)


def _protoc(root: Path, options: Iterable[str], files: Iterable[Path]) -> None:
    # In a process of its own: beside TensorFlow's protobuf, the compiler crashes.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *options]
    command += map(str, files)
    done = subprocess.run(  # noqa: S603 (the command is ours)
        command, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise GenerateError(done.stderr.strip())


def _adapt(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    for ending, header in _HEADERS.items():
        if path.name.endswith(ending):
            return header + text
    return _in_own_pool(path, text)


def _in_own_pool(path: Path, text: str) -> str:
    if text.count(_DEFAULT_POOL_IMPORT) != 1 or text.count(_DEFAULT_POOL) != 1:
        raise GenerateError(f"{path.name} does not name its pool where it used to")
    return text.replace(_DEFAULT_POOL_IMPORT, _OWN_POOL_IMPORT).replace(
        _DEFAULT_POOL, _OWN_POOL
    )


def main() -> None:
    """Bring the generated files of this package up to date."""
    texts = generate()
    for path in generated_files(PACKAGE):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
