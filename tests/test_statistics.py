"""`/statistics`: what was done in the last minute, without Prometheus."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from service.monitoring.recent import INTERVAL_SECONDS, WINDOW_SECONDS
from tests.support import (
    Served,
    image_of_class,
    only,
    serving,
    started,
    stub_version,
)

PNG = {"content-type": "image/png"}


async def classify(served: Served, path: str = "/classify") -> None:
    await served.client.post(path, content=image_of_class(1), headers=PNG)


async def statistics(served: Served) -> dict[str, Any]:
    answer = await served.client.get("/statistics")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_requests_stages_batches_and_the_engine_show(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path, allowed_batch_sizes=[2], engine_slots=3) as served:
        for _ in range(4):
            await classify(served)
        await served.client.post("/classify", content=b"no image", headers=PNG)
        await classify(served, "/models/nope/classify")
        found = await statistics(served)
    seconds = found["seconds"]
    version = only(found["versions"])
    assert (version["model"], version["version"]) == ("stub", 1)
    requests = only(version["requests"].items())
    assert requests[0] == "http"
    assert requests[1]["per_second"] == pytest.approx(5 / seconds)
    assert requests[1]["errors"] == {"invalid_image": 1}
    quantiles = [requests[1][f"p{share}_seconds"] for share in (50, 90, 95, 99)]
    assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2] <= quantiles[3]
    assert version["stages"].keys() == {
        *("read", "decode", "queue", "assembly", "inference", "encode")
    }
    assert version["stages"]["inference"]["per_second"] == pytest.approx(4 / seconds)
    assert version["batches"] == {
        "per_second": pytest.approx(4 / seconds),
        "mean_rows": 1,
        "padding_share": 0.5,
    }
    assert version["queue"] == {"depth": 0, "limit": 256, "oldest_age_seconds": 0}
    engine = version["engine"]
    assert (engine["total"], engine["taken"]) == (3, 0)
    assert 0 < engine["utilisation"] < 1
    assert found["unresolved"]["http"]["errors"] == {"model_not_found": 1}


async def test_a_version_without_requests_shows_as_idle(tmp_path: Path) -> None:
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        version = only((await statistics(served))["versions"])
    assert (version["requests"], version["stages"], version["batches"]) == (
        {},
        {},
        None,
    )
    assert version["engine"]["utilisation"] == 0


async def test_what_is_older_than_a_minute_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("service.monitoring.recent.monotonic", lambda: now)
    stub_version(tmp_path)
    async with serving(tmp_path) as served:
        recent = served.running.gateway.recent
        await classify(served)
        counted = []
        for _ in range(int(WINDOW_SECONDS / INTERVAL_SECONDS) + 2):
            now += INTERVAL_SECONDS
            recent._note()
            found = await statistics(served)
            counted.append(
                sum(
                    protocol["per_second"]
                    for protocol in only(found["versions"])["requests"].values()
                )
                * found["seconds"]
            )
        assert counted[0] == pytest.approx(1)
        assert counted[-1] == 0
        assert found["seconds"] == WINDOW_SECONDS


def test_all_workers_are_told_of_together(tmp_path: Path) -> None:
    stub_version(tmp_path)
    arguments = ("--engine", "stub", "--workers", "2", "--repository", str(tmp_path))
    with started(*arguments) as (_, url, _):
        for _ in range(16):  # each over a connection of its own, to one of the workers
            httpx.post(f"{url}/classify", content=image_of_class(1), headers=PNG)
        found = httpx.get(f"{url}/statistics").json()
    version = only(found["versions"])
    per_second = version["requests"]["http"]["per_second"]
    assert per_second * found["seconds"] == pytest.approx(16)
    assert version["queue"]["limit"] == 2 * 256
