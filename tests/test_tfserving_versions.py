"""How a gateway follows the versions that TensorFlow Serving serves."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from models.card import CARD_FILE
from service.repository import VersionState
from tests.gateways import (
    classify,
    classifying,
    in_front_of,
    pixels,
    pool_versions,
    predicted,
    problem,
    states,
    until_ready,
)
from tests.replicas import (
    MODEL,
    STATES,
    Load,
    replicas,
    until,
)
from tests.support import (
    image_of_class,
    stub_version,
)

pytestmark = pytest.mark.usefixtures("quick_probes")
LETTERS = "abcdefghij"


async def test_a_version_change_loses_no_request(tmp_path: Path) -> None:
    """Version 2 comes and 1 goes, at a moment of its own at each replica."""
    versions: set[int] = set()
    async with (
        replicas(3) as made,
        in_front_of(*made, repository=tmp_path) as served,
        Load(classifying(served, versions), at_a_time=6) as load,
    ):
        await load.more()
        for one in made:
            # As the real server does it: loaded, then the old one unloaded.
            one.versions[MODEL] = {1: STATES.AVAILABLE, 2: STATES.LOADING}
            await load.more()
            one.versions[MODEL] = {1: STATES.END, 2: STATES.AVAILABLE}
            await load.more()
        await until(lambda: states(served).get(2) is VersionState.AVAILABLE)
        versions.clear()
        await load.more(40)
        assert 2 in versions
        await until(lambda: states(served) == {2: VersionState.AVAILABLE})
        # And back, as after a bad release; all at once this time.
        for one in made:
            one.versions[MODEL] = {1: STATES.AVAILABLE, 2: STATES.END}
        await load.more(40)
        await until(lambda: states(served) == {1: VersionState.AVAILABLE})


async def test_a_version_change_loses_no_request_over_any_protocol(
    tmp_path: Path,
) -> None:
    async def rows(number: int) -> None:
        answer = await served.client.post(
            f"/v1/models/{MODEL}:predict", json={"instances": pixels(number % 10)}
        )
        assert answer.status_code == 200, answer.text
        assert np.argmax(answer.json()["predictions"]) == number % 10

    async def inference(number: int) -> None:
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 4, 4, 1]}
        answer = await served.client.post(
            f"/v2/models/{MODEL}/infer",
            json={"inputs": [{**tensor, "data": pixels(number % 10)}]},
        )
        assert answer.status_code == 200, answer.text

    async def called(number: int) -> None:
        assert await predicted(served, number % 10) == number % 10

    async with (
        replicas(2) as made,
        in_front_of(*made, repository=tmp_path) as served,
        Load(rows, at_a_time=2) as load,
        Load(inference, at_a_time=2),
        Load(called, at_a_time=2) as calls,
    ):
        for version in (2, 3, 4):
            for one in made:
                one.versions[MODEL] = {version: STATES.AVAILABLE}
            await load.more()
            await calls.more(5)
        await until(lambda: states(served) == {4: VersionState.AVAILABLE})


async def test_a_version_takes_over_once_half_of_the_replicas_have_it(
    tmp_path: Path,
) -> None:
    async with (
        replicas(3) as made,
        in_front_of(*made, repository=tmp_path) as served,
    ):
        made[0].versions[MODEL] = {2: STATES.AVAILABLE}
        await until(lambda: pool_versions(served) == {1: 2, 2: 1})
        await served.running.gateway.repository.reconcile()
        assert states(served) == {1: VersionState.AVAILABLE}
        assert await classify(served, 3) == 1
        made[1].versions[MODEL] = {2: STATES.AVAILABLE}
        await until(lambda: states(served).get(2) is VersionState.AVAILABLE)
        assert await classify(served, 3) == 2
        # Once it serves, it stays: nobody wants to go back and forth.
        await made[1].stop()
        await until(lambda: pool_versions(served) == {1: 1, 2: 1})
        await made[0].stop()
        await until(lambda: pool_versions(served) == {1: 1})
        assert await classify(served, 3) == 1


async def test_a_corrupt_version_never_serves(tmp_path: Path) -> None:
    """In the real server it stays LOADING."""
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        one.versions[MODEL][7] = STATES.LOADING
        before = one.status_calls
        await until(lambda: one.status_calls > before + 3)
        await served.running.gateway.repository.reconcile()
        assert states(served) == {1: VersionState.AVAILABLE}
        assert await classify(served, 3) == 1


async def test_labels_pin_versions(tmp_path: Path) -> None:
    both = {1: STATES.AVAILABLE, 2: STATES.AVAILABLE}
    labels = {MODEL: {"stable": 1, "canary": 2, "gone": 9}}

    async def version_of(label: str) -> tuple[int, Any]:
        path = f"/models/{MODEL}/labels/{label}/classify"
        answer = await served.client.post(path, content=image_of_class(3))
        body = answer.json()
        return answer.status_code, body.get("version") or body["error"]["code"]

    async with (
        replicas(2, versions=both) as made,
        in_front_of(*made, repository=tmp_path, labels=labels) as served,
    ):
        assert await classify(served, 3) == 2
        assert await version_of("stable") == (200, 1)
        assert await version_of("canary") == (200, 2)
        assert await version_of("gone") == (404, "version_not_found")
        for one in made:
            del one.versions[MODEL][1]
        # At first that it is being unloaded, then as the real server says it.
        assert (await version_of("stable"))[0] in {404, 503}
        await until(lambda: 1 not in states(served))
        assert await version_of("stable") == (404, "version_not_found")
        assert await version_of("canary") == (200, 2)


async def test_a_version_that_cannot_be_loaded_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = stub_version(tmp_path) / CARD_FILE
    text = card.read_text()
    card.write_text("{}")
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        repository = served.running.gateway.repository
        for _ in range(3):
            await repository.reconcile()
        assert sum("cannot be served" in told for told in caplog.messages) == 1
        card.write_text(text)
        await repository.reconcile()
        assert await classify(served, 3, labels=LETTERS) == 1


async def test_a_version_that_the_replicas_run_otherwise_than_its_card_tells_is_refused(
    tmp_path: Path,
) -> None:
    """What they serve is asked of them: the directory may hold another model's card."""
    card = stub_version(tmp_path, version=2, side=5) / CARD_FILE
    async with replicas() as (one,), in_front_of(one, repository=tmp_path) as served:
        repository = served.running.gateway.repository
        one.versions[MODEL][2] = STATES.AVAILABLE
        await until(lambda: 2 in states(served))
        await repository.reconcile()
        assert states(served) == {1: VersionState.AVAILABLE, 2: VersionState.END}
        assert await classify(served, 3) == 1
        text = card.read_text().replace('"height": 5', '"height": 4')
        card.write_text(text.replace('"width": 5', '"width": 4'))
        await repository.reconcile()
        assert await classify(served, 3, labels=LETTERS) == 2


async def test_a_version_that_could_not_be_asked_for_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        raise AssertionError

    async with replicas() as (one,):
        one.methods["GetModelMetadata"] = fail
        async with in_front_of(one, repository=tmp_path) as served:
            repository = served.running.gateway.repository
            for _ in range(3):
                await repository.reconcile()
            assert sum("cannot be served" in told for told in caplog.messages) == 1
            one.methods["GetModelMetadata"] = one.metadata
            await repository.reconcile()
            assert await classify(served, 3) == 1


async def test_a_model_that_no_replica_has_is_not_ready(tmp_path: Path) -> None:
    async with (
        replicas(versions={}) as (one,),
        in_front_of(one, repository=tmp_path) as served,
    ):
        assert "no TensorFlow Serving serves one" in str(await problem(served))
        path = f"/models/{MODEL}/classify"
        answer = await served.client.post(path, content=image_of_class(3))
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            503,
            "model_not_ready",
        )
        one.versions[MODEL] = {7: STATES.AVAILABLE}
        await until_ready(served)
        assert await classify(served, 3) == 7
