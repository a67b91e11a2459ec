"""Compose's files, and what they refer to.

There is no engine here. Compose itself reads its files, and each of their commands that
is ours runs by hand.
"""

import configparser
import json
import os
import re
import signal
import subprocess
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from tests.deployment import (
    COMPOSE_FILES,
    GRPC_PORT,
    HTTP_PORT,
    LOCUST_PORT,
    ROOT,
    answering,
    compose,
    dockerfile,
    flags_of,
    health_check,
    services,
)
from tests.support import ANNOUNCEMENT, BLOCKSERVE, only, started, stub_version

SECRETS: Final = {"BLOCKSERVE_TOKEN", "GRAFANA_PASSWORD"}
READY_SECONDS: Final = 60
FLAGS: Final = frozenset(
    (ROOT / "tests/golden/tensorflow_model_server_flags.txt")
    .read_text(encoding="utf-8")
    .split()
)


def test_the_load_test_starts_only_where_it_is_asked_for() -> None:
    everything, usual = services(), services(COMPOSE_PROFILES="")
    assert everything.keys() - usual.keys() == {"locust", "locust-worker"}
    assert services(LOCUST_WORKERS="7")["locust-worker"]["deploy"]["replicas"] == 7


@pytest.mark.parametrize("files", [COMPOSE_FILES[:1], COMPOSE_FILES])
def test_compose_reads_its_files(files: tuple[str, ...]) -> None:
    """And finds nothing to warn of: no variable without a value, nothing obsolete."""
    assert compose("config", "--quiet", files=files) == ""


def test_the_example_lists_every_variable_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    listed = dict(
        line.removeprefix("#").split("=", maxsplit=1)
        for line in lines
        if re.match(r"#?[A-Z_]+=", line)
    )
    table = compose("config", "--variables").splitlines()
    columns = [table[0].index(name) for name in ("NAME", "REQUIRED", "DEFAULT", "ALT")]
    read = {
        row[: columns[1]].strip(): row[columns[2] : columns[3]].strip()
        for row in table[1:]
    }
    text = (ROOT / COMPOSE_FILES[1]).read_text(encoding="utf-8")
    read |= dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert listed.keys() == read.keys()
    secrets = {name: listed.pop(name) for name in SECRETS}
    assert secrets == dict.fromkeys(SECRETS, "")
    assert listed == {name: read[name] for name in listed}


def test_without_a_gpu_only_the_image_is_another_and_nothing_is_reserved() -> None:
    gpu, cpu = services(), services(files=COMPOSE_FILES)
    reserved = gpu["tfserving"].pop("deploy")["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert gpu["tfserving"].pop("image").endswith("-gpu")
    assert not cpu["tfserving"].pop("image").endswith("-gpu")
    assert gpu == cpu


def test_images_have_versions() -> None:
    arguments, _ = dockerfile()
    images = [one["image"] for one in services().values() if "build" not in one]
    for image in (*images, *arguments.values()):
        name, _, tag = image.rpartition(":")
        assert tag != "latest"
        assert re.search(r"\d", tag)
        # No host in front: it comes from the registry that the engine is set up with.
        assert "." not in name.partition("/")[0]


def test_every_file_that_is_mounted_exists() -> None:
    mounted = [
        Path(volume["source"])
        for service in services().values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert len(mounted) == 5
    for path in mounted:
        assert path.is_relative_to(ROOT)
        assert path.exists(), path


def test_nothing_is_reachable_but_from_this_machine() -> None:
    ports = {
        (name, port["host_ip"], port["target"])
        for name, service in services().items()
        for port in service.get("ports", ())
    }
    assert ports == {
        ("gateway", "127.0.0.1", HTTP_PORT),
        ("gateway", "127.0.0.1", GRPC_PORT),
        ("prometheus", "127.0.0.1", 9090),
        ("grafana", "127.0.0.1", 3000),
        ("locust", "127.0.0.1", LOCUST_PORT),
    }
    everywhere = services(BIND_ADDRESS="0.0.0.0")  # noqa: S104, not bound here
    opened = {
        name
        for name, service in everywhere.items()
        for port in service.get("ports", ())
        if port["host_ip"] == "0.0.0.0"  # noqa: S104, as above
    }
    assert opened == {"gateway"}


def test_no_service_has_more_rights_than_it_needs() -> None:
    found = services()
    for service in found.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    assert all(found[name]["read_only"] for name in ("gateway", "locust"))
    assert found["build"]["network_mode"] == "none"
    writers = {
        name
        for name, service in found.items()
        for volume in service.get("volumes", ())
        if volume["source"] == "models" and not volume.get("read_only")
    }
    assert writers == {"build"}


def test_each_service_waits_for_what_it_needs() -> None:
    found = services()
    waits = {
        name: {of: how["condition"] for of, how in service["depends_on"].items()}
        for name, service in found.items()
        if "depends_on" in service
    }
    assert waits == {
        "tfserving": {"build": "service_completed_successfully"},
        "gateway": {"tfserving": "service_healthy"},
        "grafana": {"prometheus": "service_healthy"},
        "locust": {"gateway": "service_healthy"},
        "locust-worker": {"locust": "service_started"},
    }
    assert "restart" not in found["build"]
    assert all(s["restart"] for name, s in found.items() if name != "build")


def test_secrets_come_from_the_environment() -> None:
    without = services()
    gateway = without["gateway"]["environment"]
    assert "BLOCKSERVE_TOKEN" in gateway
    assert set(gateway.values()) == {None}
    grafana = without["grafana"]["environment"]
    assert set(grafana.values()) == {""}
    text = compose(
        *("config", "--format", "json"),
        BLOCKSERVE_TOKEN="one",  # noqa: S106, a test's
        GRAFANA_PASSWORD="two",  # noqa: S106, as above
    )
    project = json.loads(text)
    gateway = project["services"]["gateway"]["environment"]
    assert {name: value for name, value in gateway.items() if value} == {
        "BLOCKSERVE_TOKEN": "one"
    }
    assert project["configs"]["gateway_token"]["content"] == "one"
    assert project["services"]["grafana"]["environment"] == {
        "GF_SECURITY_ADMIN_PASSWORD": "two",
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "false",
    }


def test_tensorflow_serving_knows_all_its_flags() -> None:
    batching = "--enable_batching --batching_parameters_file=/models/batching.config"
    service = services(TFSERVING_FLAGS=batching)["tfserving"]
    assert service["entrypoint"] == ["tensorflow_model_server"]
    flags = flags_of(service["command"])
    assert flags.keys() <= FLAGS
    assert flags["enable_batching"] == "true"
    assert "enable_batching" not in flags_of(services()["tfserving"]["command"])
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert f"# {batching}\n" in example


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (404, False)])
def test_the_health_check_of_tensorflow_serving(status: int, healthy: bool) -> None:
    kind, *command = services()["tfserving"]["healthcheck"]["test"]
    assert (kind, command[0]) == ("CMD", "bash")
    assert "$" not in command[-1]  # Compose would take it for a variable
    with answering(status) as (port, asked):
        here = command[-1].replace("/8501", f"/{port}")
        done = subprocess.run([*command[:-1], here], capture_output=True, check=False)
    assert (done.returncode == 0) == healthy
    assert asked == ["/monitoring/prometheus/metrics"]
    gone = subprocess.run([*command[:-1], here], capture_output=True, check=False)
    assert gone.returncode != 0


def test_the_gateway_starts_with_the_flags_of_compose(
    repository: Path, announcement: str
) -> None:
    """In front of another gateway, which plays TensorFlow Serving."""
    tfserving = ANNOUNCEMENT.search(announcement)
    assert tfserving
    name, *flags = services()["gateway"]["command"]
    assert name == "serve"
    flags = [flag.replace("tfserving:8500", tfserving[2]) for flag in flags]
    assert any(tfserving[2] in flag for flag in flags)
    sample = (repository / "inception/1/assets.extra/sample.png").read_bytes()
    with started(*flags, "--repository", str(repository)) as (process, url, _):
        until = monotonic() + READY_SECONDS
        while httpx.get(f"{url}/readyz").status_code != 200:
            assert monotonic() < until, httpx.get(f"{url}/readyz").text
        assert health_check(url).returncode == 0
        answer = httpx.post(f"{url}/classify", content=sample).json()
        assert (answer["model"], answer["version"]) == ("inception", 1)
        assert len(answer["results"][0]["predictions"]) == 5
        metrics = httpx.get(f"{url}/metrics", headers={"authorization": "Bearer none"})
        assert metrics.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_the_build_service_leaves_alone_what_is_there(repository: Path) -> None:
    """It runs before each start."""
    command = services()["build"]["command"]
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*/*")}
    done = subprocess.run(
        [*BLOCKSERVE, *command],
        env={**os.environ, "BLOCKSERVE_REPOSITORY": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {p: p.stat().st_mtime_ns for p in repository.rglob("*/*")} == before


@pytest.mark.slow
def test_the_build_service_builds_what_the_gateway_serves(tmp_path: Path) -> None:
    command = services(BUILD_FLAGS="lenet --epochs 1 --name digits")["build"]["command"]
    subprocess.run(
        [*BLOCKSERVE, *command],
        env={**os.environ, "BLOCKSERVE_REPOSITORY": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    sample = (tmp_path / "digits/1/assets.extra/sample.png").read_bytes()
    with started("--repository", str(tmp_path)) as (_, url, _):
        answer = httpx.post(f"{url}/classify", content=sample)
        assert answer.status_code == 200


def test_prometheus_asks_the_services(repository: Path) -> None:
    path = ROOT / "deploy/prometheus/prometheus.yml"
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["scrape_configs"]
    }
    project = json.loads(compose("config", "--format", "json"))
    found = project["services"]
    assert jobs.keys() <= found.keys()
    target = only(only(jobs["gateway"]["static_configs"])["targets"])
    assert target == f"gateway:{HTTP_PORT}"
    assert "metrics_path" not in jobs["gateway"]  # /metrics is the default
    config = only(found["prometheus"]["configs"])
    credentials = jobs["gateway"]["authorization"]["credentials_file"]
    assert (config["source"], config["target"]) == ("gateway_token", credentials)
    replicas = only(jobs["tfserving"]["dns_sd_configs"])
    assert replicas["names"] == ["tfserving"]
    assert f"--rest_api_port={replicas['port']}" in found["tfserving"]["command"]
    monitoring = (repository / "monitoring.config").read_text(encoding="utf-8")
    assert f'path: "{jobs["tfserving"]["metrics_path"]}"' in monitoring
    mounted = {
        volume["target"]: Path(volume["source"])
        for volume in found["prometheus"]["volumes"]
    }
    flags = flags_of(found["prometheus"]["command"])
    assert mounted[flags["config.file"]] == path
    # The rules are beside it, there as here.
    rules = only(yaml.safe_load(path.read_text(encoding="utf-8"))["rule_files"])
    directory = (PurePosixPath(flags["config.file"]).parent / rules).parent
    assert mounted[str(directory)] == (path.parent / rules).parent
    assert list(path.parent.glob(rules))
    assert flags["storage.tsdb.path"] in mounted


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    found = services()
    directory = ROOT / "deploy/grafana/provisioning"
    text = (directory / "datasources/prometheus.yml").read_text(encoding="utf-8")
    source = only(yaml.safe_load(text)["datasources"])
    address = urlsplit(source["url"])
    assert address.hostname in found
    assert address.port == found["prometheus"]["ports"][0]["target"]
    mounted = {v["target"]: Path(v["source"]) for v in found["grafana"]["volumes"]}
    assert mounted["/etc/grafana/provisioning"] == directory
    text = (directory / "dashboards/files.yml").read_text(encoding="utf-8")
    provider = only(yaml.safe_load(text)["providers"])
    assert mounted[provider["options"]["path"]].is_dir()
    settings = configparser.ConfigParser()
    settings.read(mounted["/etc/grafana/grafana.ini"], encoding="utf-8")
    home = PurePosixPath(settings["dashboards"]["default_home_dashboard_path"])
    assert (mounted[str(home.parent)] / home.name).is_file()
    assert settings["auth.anonymous"]["org_role"] == "Viewer"
    assert settings["security"]["disable_initial_admin_creation"] == "true"


def test_a_gateway_that_is_not_ready_is_not_healthy(tmp_path: Path) -> None:
    """It runs, and waits for TensorFlow Serving."""
    stub_version(tmp_path)
    name, *flags = services()["gateway"]["command"]
    assert name == "serve"
    with answering(200) as (port, _):
        flags = [flag.replace("tfserving:8500", f"127.0.0.1:{port}") for flag in flags]
        with started(*flags, "--repository", str(tmp_path)) as (_, url, _):
            assert httpx.get(f"{url}/healthz").status_code == 200
            assert health_check(url).returncode != 0


def test_the_guide_names_what_there_is() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    guide = text.split("\n## The whole system")[1].split("\n## ")[0]
    for path in re.findall(r"(?:deploy/|docker-compose)[\w./-]*\w", guide):
        assert (ROOT / path).is_file(), path
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in re.findall(r"`([A-Z_]{4,})(?:=[^`]*)?`", guide):
        assert f"{name}=" in example or name == "COMPOSE_FILE", name
    rows = re.findall(r"^\| `([\w-]+)` \|", guide, re.MULTILINE)
    assert set(rows) == set(services())
    # The script stays in the foreground: what comes after it is for another terminal.
    *_, first, second = re.findall(
        r"^```sh\n(.*?)^```", guide, re.MULTILINE | re.DOTALL
    )
    build, script = first.splitlines()
    serve = second.strip()
    assert "blockserve " + " ".join(services()["build"]["command"]) == build
    assert os.access(ROOT / script.split()[0], os.X_OK)
    _, *flags = services()["gateway"]["command"]
    in_compose = dict(zip(flags[::2], flags[1::2], strict=True))
    words = serve.split()
    assert words[:4] == ["blockserve", "serve", "--engine", in_compose["--engine"]]
    assert words[4] in in_compose
