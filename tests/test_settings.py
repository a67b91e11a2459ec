"""One setting, three places to give it, and what happens if it is wrong."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.errors import InvalidSettings
from service.settings import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those that a test makes."""
    monkeypatch.chdir(tmp_path)


def test_the_environment_gives_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKSERVE_MAX_BATCH_SIZE", "8")
    monkeypatch.setenv("BLOCKSERVE_LABELS", '{"inception": {"stable": 3}}')
    settings = Settings()
    assert settings.max_batch_size == 8
    assert settings.labels == {"inception": {"stable": 3}}


def test_a_toml_file_gives_settings(tmp_path: Path) -> None:
    Path("blockserve.toml").write_text(
        "max_batch_size = 4\n[labels.inception]\nstable = 2\n"
    )
    settings = Settings()
    assert settings.max_batch_size == 4
    assert settings.labels == {"inception": {"stable": 2}}
    other = tmp_path / "other.toml"
    other.write_text("max_batch_size = 2\n")
    assert Settings(config=other).max_batch_size == 2


def test_arguments_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("blockserve.toml").write_text("http_port = 1\ngrpc_port = 1\ntop_k = 1\n")
    monkeypatch.setenv("BLOCKSERVE_HTTP_PORT", "2")
    monkeypatch.setenv("BLOCKSERVE_GRPC_PORT", "2")
    settings = Settings(http_port=3)
    assert (settings.http_port, settings.grpc_port, settings.top_k) == (3, 2, 1)


def test_an_unknown_key_in_the_file_is_refused() -> None:
    Path("blockserve.toml").write_text("max_bach_size = 4\n")
    with pytest.raises(ValidationError, match="max_bach_size"):
        Settings()


def test_a_file_that_is_named_must_be_there() -> None:
    with pytest.raises(InvalidSettings, match=r"no file absent\.toml"):
        Settings(config=Path("absent.toml"))


def test_a_file_that_is_no_toml_is_named() -> None:
    Path("blockserve.toml").write_text("[")
    with pytest.raises(InvalidSettings, match=r"blockserve\.toml is not TOML"):
        Settings()


def test_a_certificate_needs_its_key() -> None:
    Path("x.pem").touch()
    with pytest.raises(ValidationError, match="give both or none"):
        Settings(tls_certificate=Path("x.pem"))


def test_a_certificate_must_be_there() -> None:
    with pytest.raises(ValidationError, match="does not point to a file"):
        Settings(tls_certificate=Path("absent.pem"), tls_key=Path("absent.pem"))


def test_a_token_is_not_shown() -> None:
    assert "hidden" not in repr(Settings(token=SecretStr("hidden")))


def test_addresses_of_replicas_may_be_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ("one:8500", "[::1]:8500", "unix:/run/tf.sock", "dns:///tf:8500")
    text = "one:8500, [::1]:8500,unix:/run/tf.sock,,dns:///tf:8500,one:8500"
    monkeypatch.setenv("BLOCKSERVE_ENGINE", "tfserving")
    monkeypatch.setenv("BLOCKSERVE_TFSERVING", text)
    monkeypatch.setenv("BLOCKSERVE_TFSERVING_MODELS", "inception,resnet")
    settings = Settings()
    assert settings.tfserving == expected
    assert settings.tfserving_models == ("inception", "resnet")
    Path("blockserve.toml").write_text('tfserving = ["other:8500"]\n')
    monkeypatch.delenv("BLOCKSERVE_TFSERVING")
    assert Settings().tfserving == ("other:8500",)
    assert Settings(tfserving=["a:1,b:2", "c:3"]).tfserving == ("a:1", "b:2", "c:3")


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "localhost:", "localhost:port", ":8500", "localhost:70000"),
        *("http://localhost:8500", "unix:", "dns:///name", "dns:name:8500"),
        *("::1:8500", "dns:///:8500", "host:8500/path"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT, unix:PATH or dns:///NAME"):
        Settings(engine="tfserving", tfserving=address)


def test_replicas_and_their_engine_belong_together() -> None:
    with pytest.raises(ValidationError, match="--tfserving localhost:8500"):
        Settings(engine="tfserving")
    with pytest.raises(ValidationError, match="--engine tfserving"):
        Settings(tfserving="localhost:8500")


def test_several_workers_may_ask_replicas() -> None:
    settings = Settings(engine="tfserving", tfserving="localhost:8500", workers=2)
    assert settings.workers == 2


def test_only_tensorflow_serving_makes_batches_of_its_own() -> None:
    with pytest.raises(ValidationError, match="makes no batches of its own"):
        Settings(batching="server")
    remote = {"engine": "tfserving", "tfserving": "localhost:8500"}
    assert Settings(**remote, batching="server").batching == "server"
    with pytest.raises(ValidationError, match="max_batch_size: with batching"):
        Settings(**remote, batching="server", max_batch_size=8)
