"""How the repository follows the directory: load, switch, drain, report."""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from models.card import CARD_FILE
from service import engines
from service.engines.stub import StubEngine
from service.errors import ModelNotReady, NotFound
from service.repository import Repository, Target, VersionState
from service.settings import Settings
from service.sources import DirectorySource
from service.telemetry.metrics import Metrics, render
from tests.replicas import images
from tests.support import only, stub_version


@asynccontextmanager
async def following(root: Path, **settings: Any) -> AsyncIterator[Repository]:
    options = {"engine": "stub", "repository": root, **settings}
    settings = Settings(**options)
    repository = Repository(
        settings, Metrics(settings.duration_buckets_seconds), DirectorySource(settings)
    )
    await repository.start()
    yield repository
    await repository.stop(drain_timeout_seconds=30)


def serving(repository: Repository, name: str = "stub") -> list[int]:
    return [version.version for version in repository.models[name].available]


def state(repository: Repository, number: int, name: str = "stub") -> VersionState:
    return repository.models[name].versions[number].state


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_latest_version_serves(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        stub_version(tmp_path, version=version)
    async with following(tmp_path) as repository:
        assert serving(repository) == [10]


async def test_more_versions_serve_if_the_settings_say_so(tmp_path: Path) -> None:
    for version in (1, 2, 3, 4):
        stub_version(tmp_path, version=version)
    labels = {"stub": {"stable": 1}}
    async with following(tmp_path, versions_to_serve=2, labels=labels) as repository:
        assert serving(repository) == [4, 3, 1]


async def test_a_new_version_is_found_and_takes_over(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        assert serving(repository) == [1]
        draft = stub_version(tmp_path / ".draft", version=2)
        draft.rename(tmp_path / "stub" / "2")
        await until(lambda: serving(repository) == [2])
        await until(lambda: state(repository, 1) is VersionState.END)


async def test_a_new_model_is_found(tmp_path: Path) -> None:
    async with following(tmp_path) as repository:
        assert repository.problem is not None
        stub_version(tmp_path)
        await until(lambda: "stub" in repository.models and serving(repository) == [1])
        assert repository.problem is None


async def test_a_version_that_is_removed_stops_to_serve(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    stub_version(tmp_path, version=2)
    async with following(tmp_path) as repository:
        shutil.rmtree(tmp_path / "stub" / "2")
        await until(lambda: serving(repository) == [1])


async def test_the_old_version_finishes_what_it_has_accepted(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        with repository.lease(Target(name="stub")) as old:
            stub_version(tmp_path, version=2)
            await repository.reconcile()
            assert serving(repository) == [2]
            assert state(repository, 1) is VersionState.UNLOADING
            engine = old.engine
            assert isinstance(engine, StubEngine)
        await until(lambda: state(repository, 1) is VersionState.END)


@pytest.mark.parametrize("damage", ["no model", "no card", "card of another kind"])
async def test_a_broken_version_is_reported_and_the_good_one_serves_on(
    tmp_path: Path, damage: str
) -> None:
    stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        draft = stub_version(tmp_path / ".draft", version=2)
        match damage:
            case "no model":
                (draft / "saved_model.pb").unlink()
            case "no card":
                (draft / CARD_FILE).unlink()
            case _:
                (draft / CARD_FILE).write_text('{"name": 3}')
        draft.rename(tmp_path / "stub" / "2")
        await repository.reconcile()
        assert serving(repository) == [1]
        broken = repository.models["stub"].versions[2]
        assert broken.state is VersionState.END
        assert broken.error
        assert repository.problem is None
        with (
            pytest.raises(ModelNotReady),
            repository.lease(Target(name="stub", version=2)),
        ):
            pass


async def test_a_version_whose_card_is_that_of_another_model_does_not_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "load", lambda *_, **__: StubEngine(images()))
    stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        card = stub_version(tmp_path, version=2, side=5) / CARD_FILE
        await repository.reconcile()
        assert serving(repository) == [1]
        assert repository.models["stub"].versions[2].error == (
            "the model card has the image input images uint8[batch,5,5,1], and the "
            "signature 'serving_default' takes images uint8[batch,4,4,1]; build the "
            f"version again, or mend its {CARD_FILE}"
        )
        told = only(one for one in caplog.records if one.levelname == "ERROR")
        assert told.exc_info is None
        card.write_text((tmp_path / "stub" / "1" / CARD_FILE).read_text())
        await until(lambda: serving(repository) == [2])


async def test_every_attempt_that_fails_is_counted_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = stub_version(tmp_path) / "saved_model.pb"
    model.unlink()
    async with following(tmp_path) as repository:
        for attempt in (1, 2, 3):
            failures = repository._metrics.model_load_failures_total
            assert failures.labels("stub").value == attempt
            (model.parent / f"more {attempt}").touch()
            await repository.reconcile()
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 1


async def test_at_start_a_broken_version_gives_way_to_an_older_one(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path, version=1)
    (stub_version(tmp_path, version=2) / CARD_FILE).unlink()
    async with following(tmp_path) as repository:
        assert serving(repository) == [1]


async def test_a_broken_version_is_tried_again_when_it_changes(tmp_path: Path) -> None:
    card = stub_version(tmp_path) / CARD_FILE
    text = card.read_text()
    card.write_text("{}")
    async with following(tmp_path) as repository:
        assert serving(repository) == []
        problem = repository.problem
        assert problem is not None
        assert "is not a model card" in problem
        card.write_text(text)
        await until(lambda: serving(repository) == [1])


async def test_an_unloaded_version_leaves_no_time_series(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    options = {"engine": "stub", "repository": tmp_path}
    settings = Settings(**options)
    metrics = Metrics(settings.duration_buckets_seconds)
    repository = Repository(settings, metrics, DirectorySource(settings))
    await repository.start()
    assert 'version="1"' in render(metrics.registry, "")[0].decode()
    stub_version(tmp_path, version=2)
    await until(lambda: serving(repository) == [2])
    await until(lambda: state(repository, 1) is VersionState.END)
    text = render(metrics.registry, "")[0].decode()
    assert 'version="1"' not in text
    assert 'version="2"' in text
    await repository.stop(drain_timeout_seconds=30)


async def test_names_that_are_no_versions_are_ignored(tmp_path: Path) -> None:
    stub_version(tmp_path, version=1)
    for name in ("0", "-1", "1.5", "tmp", "²", str(2**63)):
        (tmp_path / "stub" / name).mkdir()
    (tmp_path / "README").touch()
    async with following(tmp_path) as repository:
        assert list(repository.models) == ["stub"]
        assert list(repository.models["stub"].versions) == [1]


async def test_a_name_that_is_no_text_is_no_model_and_does_not_end_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What watches the directory ends at such a name; looking goes on."""
    monkeypatch.setattr("service.sources.directory.RESCAN_MILLISECONDS", 10)
    async with following(tmp_path) as repository:
        shutil.copytree(
            stub_version(tmp_path / ".away"),
            tmp_path / os.fsdecode(b"no text: \xff") / "1",
        )
        await until(lambda: "looking every" in caplog.text)
        stub_version(tmp_path)
        await until(lambda: "stub" in repository.models and serving(repository) == [1])
        assert list(repository.models) == ["stub"]


async def test_a_model_directory_without_versions_says_what_it_needs(
    tmp_path: Path,
) -> None:
    (tmp_path / "flat").mkdir()
    async with following(tmp_path) as repository:
        with (
            pytest.raises(ModelNotReady, match="number for a name"),
            repository.lease(Target(name="flat")),
        ):
            pass
        with (
            pytest.raises(NotFound, match="'flat'"),
            repository.lease(Target(name="other")),
        ):
            pass


async def test_a_savedmodel_without_a_card_is_described_by_its_signature(
    version_directory: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "plain" / "1"
    shutil.copytree(version_directory, copy)
    (copy / CARD_FILE).unlink()
    async with following(tmp_path, engine="openvino") as repository:
        with repository.lease(Target()) as served:
            image = served.card.image_input
            assert image is not None
            assert (image.tensor, image.height, image.channels) == ("images", 28, 1)
            assert served.card.labels == tuple("0123456789")


async def test_a_repository_that_is_away_for_a_moment_unloads_nothing(
    tmp_path: Path,
) -> None:
    root = tmp_path / "repository"
    stub_version(root)
    async with following(root) as repository:
        root.rename(tmp_path / "away")
        await repository.reconcile()
        assert serving(repository) == [1]
        (tmp_path / "away").rename(root)


async def test_a_version_that_was_replaced_is_not_found_any_more(
    tmp_path: Path,
) -> None:
    stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        stub_version(tmp_path, version=2)
        await until(lambda: state(repository, 1) is VersionState.END)
        with (
            pytest.raises(NotFound, match="not served any more"),
            repository.lease(Target(name="stub", version=1)),
        ):
            pass


async def test_a_version_that_comes_back_while_it_drains_serves_again(
    tmp_path: Path,
) -> None:
    directory = stub_version(tmp_path, version=1)
    async with following(tmp_path) as repository:
        with repository.lease(Target(name="stub")):
            directory.rename(tmp_path / "away")
            await repository.reconcile()
            assert state(repository, 1) is VersionState.UNLOADING
            (tmp_path / "away").rename(directory)
            await repository.reconcile()
            assert state(repository, 1) is VersionState.UNLOADING
        await until(lambda: serving(repository) == [1])


async def test_a_load_goes_on_when_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what a thread loads for it would stay in memory, and be loaded once more."""
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    loaded: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        loaded.append(load_now(*arguments, **options))
        return loaded[-1]

    load_now = engines.load
    async with following(tmp_path) as repository:
        monkeypatch.setattr(engines, "load", load)
        stub_version(tmp_path)
        loading = asyncio.ensure_future(repository.load("stub"))
        await begun.wait()
        loading.cancel()
        await asyncio.wait([loading])
        gate.set()
        await until(lambda: serving(repository) == [1])
        await repository.reconcile()
        assert only(loaded) is repository.models["stub"].available[0].engine


async def test_a_name_that_is_empty_controls_no_model(tmp_path: Path) -> None:
    """To the only model goes what is asked for without a name, but no control."""
    stub_version(tmp_path)
    async with following(tmp_path) as repository:
        with pytest.raises(NotFound, match="there is no model ''; there is 'stub'"):
            await repository.unload("")
        with pytest.raises(NotFound, match="there is no model ''; there is 'stub'"):
            await repository.load("")
        assert serving(repository) == [1]


async def test_following_outlives_a_look_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path) as repository:
        failed = asyncio.Event()

        async def fail() -> None:
            failed.set()
            raise OSError("away")

        with monkeypatch.context() as patch:
            patch.setattr(repository, "reconcile", fail)
            (tmp_path / "touched").touch()
            await asyncio.wait_for(failed.wait(), 10)
        stub_version(tmp_path)
        await until(lambda: "stub" in repository.models and serving(repository) == [1])


async def test_a_version_that_vanishes_while_it_is_looked_at_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(_: Path) -> None:
        raise FileNotFoundError

    stub_version(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("service.sources.directory._fingerprint", vanish)
        async with following(tmp_path) as repository:
            assert serving(repository) == []
            patch.undo()
            await repository.reconcile()
            assert serving(repository) == [1]


async def test_a_version_that_may_not_be_looked_at_is_reported_until_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    directory = stub_version(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("service.sources.directory._fingerprint", refuse)
        async with following(tmp_path) as repository:
            failures = repository._metrics.model_load_failures_total.labels("stub")
            assert state(repository, 1) is VersionState.END
            assert f"Permission denied: '{directory}'" in str(repository.problem)
            assert failures.value == 1
            await repository.reconcile()
            assert failures.value == 2
            assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
            patch.undo()
            await repository.reconcile()
            assert serving(repository) == [1]
            assert repository.models["stub"].versions[1].error is None
