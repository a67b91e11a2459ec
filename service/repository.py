"""The models that there are and the versions of them that serve.

A new version is loaded and warmed up before requests go to it; the version it replaces
finishes what it has accepted. A version that cannot be loaded is reported, and the
latest good one goes on serving.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any, Final

from models.card import CardError
from service.batching import Processor
from service.errors import (
    BlockserveError,
    InvalidRequest,
    ModelNotReady,
    NotFound,
    Unavailable,
    UnsupportedModel,
)
from service.model_config import ModelConfig
from service.served_version import ServedVersion
from service.settings import Settings
from service.sources import Source
from service.telemetry.metrics import Metrics
from service.warm_up import measure, warm_up

logger = logging.getLogger(__name__)


class VersionState(StrEnum):
    """The states of a version, named as TensorFlow Serving names them."""

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


# States in which nothing of a version is in memory or on its way there.
SETTLED: Final = frozenset({VersionState.START, VersionState.END})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which version of a model a request means.

    Attributes:
        name: The model; `None` is the default model, or the only one.
        version: Its version; `None` is the latest that serves.
        label: A label of a version, in place of `version`.
    """

    name: str | None = None
    version: int | None = None
    label: str | None = None


@dataclass(slots=True, eq=False)
class Version:
    """What is known of a version directory.

    Attributes:
        number: The version.
        path: The directory.
        state: What becomes of it.
        error: Why it could not be loaded, if so.
        served: It, while it is AVAILABLE.
        drain: Ends when what it had accepted has.
        fingerprint: What it was when it was loaded last.
        load_seconds: How long that took, with the warm-up.
    """

    number: int
    path: Path
    state: VersionState = VersionState.START
    error: str | None = None
    served: ServedVersion | None = None
    drain: asyncio.Task[None] | None = None
    fingerprint: object = None
    load_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Model:
    """A model's versions by number.

    Attributes:
        config: Which of them are to serve.
        needs: What it lacks where it has none.
        unloaded: Whether a client wanted none of them to.
    """

    name: str
    config: ModelConfig
    needs: str
    unloaded: bool = False
    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def available(self) -> list[ServedVersion]:
        """Serving versions, latest first."""
        served = (self.versions[n].served for n in sorted(self.versions, reverse=True))
        return [version for version in served if version is not None]


class Repository:
    """Follows a source of versions and hands out those that serve.

    Args:
        settings: Which versions to serve, and how.
        metrics: Where versions register their time series.
        source: Where they come from.
        on_change: Called on the event loop when a version's state has changed or its
            dispatching has crashed.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        source: Source,
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_change = on_change
        self._source = source
        self._processor = Processor(source.slots)
        self._models: dict[str, Model] = {}
        # What nearly every request asks for; `None` is a request that names no model.
        self._latest: dict[str | None, ServedVersion] = {}
        self._reconciling = asyncio.Lock()
        self._looks_total = 0
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def models(self) -> Mapping[str, Model]:
        """All models that the directory holds, by name."""
        return self._models

    @property
    def problem(self) -> str | None:
        """Why no request can be answered; `None` if some model serves."""
        served = [v for model in self._models.values() for v in model.available]
        if not self._models:
            empty = f"{self._settings.repository} holds no model"
            return self._source.problem or empty
        if not served:
            reasons = (_why_not_ready(model) for model in self._models.values())
            return self._source.problem or "; ".join(reasons)
        crashed = [f"{v.name} version {v.version}" for v in served if v.crashed]
        if crashed:
            return f"dispatching has failed for {', '.join(crashed)}; restart"
        return self._source.problem

    def model(self, name: str | None = None) -> Model:
        """The model that a request names; `None` is the default, or the only one.

        Raises:
            InvalidRequest: No model was named and there are several.
            NotFound: No such model.
            ModelNotReady: The repository is empty.
        """
        name = name or self._settings.default_model
        if name is None:
            return self._only_model()
        return self._named(name)

    async def start(self) -> None:
        """Load what the directory holds, then follow it until `stop`."""
        self._spawn(self._follow())
        # The watch begins with the task's first step: what changes during the first
        # look is not missed.
        await asyncio.sleep(0)
        await self.reconcile()

    def stop_loading(self) -> None:
        """Follow the source no longer; what is loading just now is finished."""
        self._stopping.set()

    def refuse(self) -> None:
        """Refuse all requests that have no answer yet."""
        for model in self._models.values():
            for served in model.available:
                served.refuse()

    async def stop(self, *, drain_timeout_seconds: float) -> None:
        """Stop following and unload everything, accepted requests first."""
        self.stop_loading()
        async with self._reconciling:
            for model in self._models.values():
                for version in model.versions.values():
                    self._unload(version, drain_timeout_seconds)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._source.close()

    def lease(self, target: Target) -> AbstractContextManager[ServedVersion]:
        """The version that answers a request, kept loaded while a block lasts.

        Raises:
            InvalidRequest: No model was named and there are several.
            NotFound: No such model, version or label.
            ModelNotReady: It exists, but does not serve at this moment.
        """
        if target.version is None and target.label is None:
            latest = self._latest.get(target.name)
            if latest is not None:
                return latest
        model = self.model(target.name)
        if target.label is not None:
            return _pick(model, self.labelled(model, target.label))
        return _pick(model, target.version)

    async def load(self, name: str) -> None:
        """Let a model serve again, and try anew what failed.

        Raises:
            NotFound: No such model.
            ModelNotReady: No version of it could be loaded.
        """
        await self.reconcile()  # it may have come a moment ago
        model = self._named(name)
        model.unloaded = False
        for version in model.versions.values():
            version.fingerprint = None
        await _drained(model)
        await self.reconcile()
        if not model.available:
            raise ModelNotReady(_why_not_ready(model))

    async def unload(self, name: str) -> None:
        """Let no version of a model serve until it is loaded; accepted work ends.

        Raises:
            NotFound: No such model.
        """
        self._named(name).unloaded = True
        await self.reconcile()

    async def configure(self, configs: Mapping[str, ModelConfig]) -> None:
        """Serve these of the models that there are, and no others.

        Raises:
            NotFound: There is no model of one of the names; nothing has changed.
            ModelNotReady: No version of one of them can be loaded.
        """
        await self.reconcile()
        named = [self._named(name) for name in configs]
        for model in self._models.values():
            model.unloaded = model.name not in configs
        for model in named:
            model.config = configs[model.name]
        await self.reconcile()
        if late := [model for model in named if not model.available]:
            for model in late:
                await _drained(model)
            await self.reconcile()
        for model in named:
            if not model.available:
                raise ModelNotReady(_why_not_ready(model))

    async def reconcile(self) -> None:
        """Load and unload until what serves is what the source asks for.

        Many may ask for it at once: one look that began since is enough for all. It
        goes on where the caller is cancelled: nobody would free what a thread is
        loading for it, and other models may be waiting for their turn.
        """
        task = asyncio.get_running_loop().create_task(self._reconcile())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _reconcile(self) -> None:
        looks_before = self._looks_total
        async with self._reconciling:
            if self._looks_total > looks_before:
                return
            self._looks_total += 1
            try:
                found = await self._source.scan()
            except OSError as error:
                # A volume that is away for a moment must not unload what serves.
                logger.warning("cannot read the repository: %s", error)
                return
            self._resize()
            for name in sorted(found.keys() | self._models.keys()):
                if self._stopping.is_set():
                    return
                model = self._models.get(name)
                if model is None:
                    config = ModelConfig.of_settings(self._settings, name)
                    model = Model(name, config, needs=self._source.needs)
                    self._models[name] = model
                    # Or Prometheus would not see the first failure as a change.
                    self._metrics.model_load_failures_total.labels(name)
                await self._reconcile_model(model, found.get(name, {}))
                if name not in found and not model.versions:
                    del self._models[name]
                    self._metrics.model_load_failures_total.remove({"model": name})

    def _resize(self) -> None:
        """Follow the source, whose slots may be more now, or fewer."""
        self._processor.resize(self._source.slots)
        for model in self._models.values():
            for served in model.available:
                served.resize()

    async def _reconcile_model(self, model: Model, found: Mapping[int, Path]) -> None:
        labelled = set(model.config.labels.values())
        keep: set[int] = set()
        wanted = 0
        for number in () if model.unloaded else sorted(found, reverse=True):
            is_wanted = model.config.policy.wants(number, later=wanted) and (
                self._may_take_over(model, number)
            )
            if not is_wanted and number not in labelled:
                continue
            version = model.versions.setdefault(number, Version(number, found[number]))
            if await self._ensure_available(model, version):
                keep.add(number)
                wanted += is_wanted
        for number, version in tuple(model.versions.items()):
            if number not in keep:
                self._unload(version, self._settings.drain_timeout_seconds)
            if number not in found and version.state in SETTLED:
                del model.versions[number]

    def _may_take_over(self, model: Model, number: int) -> bool:
        """Whether a version may serve those who name none."""
        if model.config.policy.versions is not None:
            return True
        version = model.versions.get(number)
        serves = version is not None and version.served is not None
        return serves or self._source.may_take_over(model.name, number)

    async def _ensure_available(self, model: Model, version: Version) -> bool:
        if version.state is VersionState.AVAILABLE:
            return True
        if version.state is VersionState.UNLOADING:
            return False  # the next look, when it has drained, loads it again
        said_before = version.error
        try:
            if not await self._is_worth_a_try(model, version):
                return False
            version.error = None
            self._enter(version, VersionState.LOADING)
            started = monotonic()
            version.served = await self._load(model, version)
        except Exception as error:
            # A damaged model may raise anything; it must not stop the good ones.
            version.error = str(error) or repr(error)
            if isinstance(error, Unavailable):
                version.fingerprint = None  # the next look may find that it has passed
            self._metrics.model_load_failures_total.labels(model.name).inc()
            if version.error != said_before:
                self._report(model, version, error)
            self._enter(version, VersionState.END)
            return False
        version.load_seconds = monotonic() - started
        self._enter(version, VersionState.AVAILABLE)
        logger.info(
            "%s version %d is available (%s)",
            model.name,
            version.number,
            version.served.engine.kind,
        )
        return True

    async def _is_worth_a_try(self, model: Model, version: Version) -> bool:
        """Whether a version is there, and has not failed as it is now.

        Raises:
            OSError: It cannot be looked at.
        """
        try:
            fingerprint = await self._source.fingerprint(
                model.name, version.number, version.path
            )
        except FileNotFoundError:
            return False  # it is being removed at this moment
        except OSError:
            version.fingerprint = None  # the next look may find that it has passed
            raise
        is_new = version.error is None or fingerprint != version.fingerprint
        version.fingerprint = fingerprint
        return is_new

    def _report(self, model: Model, version: Version, error: Exception) -> None:
        """Tell that a version cannot be loaded."""
        expected = isinstance(error, UnsupportedModel | CardError | BlockserveError)
        logger.error(
            "%s version %d cannot be served: %s",
            model.name,
            version.number,
            version.error,
            exc_info=None if expected else error,
        )

    async def _load(self, model: Model, version: Version) -> ServedVersion:
        name = model.name
        loaded = await self._source.load(name, version.number, version.path)
        engine, settings = loaded.engine, self._settings
        card = {"name": name, "version": version.number}
        try:
            if loaded.is_warm:
                before = model.available[:1]
                known = before[0].curves_for(engine) if before else {}
                curves = await measure(engine, settings, known)
            else:
                curves = {
                    signature.name: await warm_up(engine, signature, settings)
                    for signature in engine.signatures.values()
                }
            return ServedVersion(
                card=loaded.card.model_copy(update=card),
                engine=engine,
                signature_defs=loaded.signature_defs,
                curves=curves,
                processor=self._processor,
                metrics=self._metrics,
                settings=settings,
                on_crash=self._on_change,
            )
        except BaseException:
            engine.close()
            self._metrics.forget(name, version.number)
            raise

    def _unload(self, version: Version, drain_timeout_seconds: float) -> None:
        served = version.served
        if served is None:
            return
        version.served = None
        self._enter(version, VersionState.UNLOADING)
        drain = self._drain(version, served, drain_timeout_seconds)
        version.drain = self._spawn(drain)

    async def _drain(
        self, version: Version, served: ServedVersion, drain_timeout_seconds: float
    ) -> None:
        await served.close(drain_timeout_seconds=drain_timeout_seconds)
        self._metrics.forget(served.name, served.version)
        self._enter(version, VersionState.END)
        logger.info("%s version %d is unloaded", served.name, served.version)
        if not self._stopping.is_set():
            self._spawn(self._look())  # it may be wanted again since

    async def _follow(self) -> None:
        async for _ in self._source.changes(self._stopping):
            await self._look()
            self._on_change()  # what can be asked may have changed, if no version has

    async def _look(self) -> None:
        try:
            await self.reconcile()
        except Exception:
            # Following must outlive whatever one look stumbles over.
            logger.exception("looking at the repository has failed; trying again")

    def _enter(self, version: Version, state: VersionState) -> None:
        version.state = state
        self._latest = self._find_latest()
        self._on_change()

    def _find_latest(self) -> dict[str | None, ServedVersion]:
        latest: dict[str | None, ServedVersion] = {
            name: model.available[0]
            for name, model in self._models.items()
            if model.available
        }
        default = self._settings.default_model
        if default is None and len(latest) == 1:
            (default,) = latest
        if default in latest:
            latest[None] = latest[default]
        return latest

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("following the repository has failed", exc_info=error)

    def _named(self, name: str) -> Model:
        if name not in self._models:
            raise NotFound(
                f"there is no model {name!r}; there is "
                f"{', '.join(map(repr, sorted(self._models))) or 'none yet'}",
                code="model_not_found",
            )
        return self._models[name]

    def _only_model(self) -> Model:
        # One that is broken or half copied must not make the good one ambiguous.
        candidates = [model for model in self._models.values() if model.available] or [
            model for model in self._models.values() if model.versions
        ]
        if not candidates:
            raise ModelNotReady(self.problem or "no model is loaded yet")
        if len(candidates) > 1:
            names = ", ".join(sorted(model.name for model in candidates))
            raise InvalidRequest(
                "there are several models; name one, as in /models/NAME/classify, or "
                f"set default_model: {names}",
                code="model_required",
            )
        return candidates[0]

    def labelled(self, model: Model, label: str) -> int:
        """The version that a label of a model stands for.

        Raises:
            NotFound: The model has no such label.
        """
        labels = model.config.labels
        if label not in labels:
            raise NotFound(
                f"model {model.name!r} has no label {label!r}; it has "
                f"{', '.join(map(repr, sorted(labels))) or 'none'}",
                code="label_not_found",
            )
        return labels[label]


async def _drained(model: Model) -> None:
    """Wait for what its versions have accepted that are being unloaded."""
    for version in tuple(model.versions.values()):
        if version.drain is not None:
            await asyncio.wait([version.drain])


def _pick(model: Model, number: int | None) -> ServedVersion:
    if number is None:
        available = model.available
        if not available:
            raise ModelNotReady(_why_not_ready(model))
        return available[0]
    version = model.versions.get(number)
    if version is None:
        known = ", ".join(map(str, sorted(model.versions))) or "none"
        raise NotFound(
            f"model {model.name!r} has no version {number}; it has {known}",
            code="version_not_found",
        )
    if version.served is not None:
        return version.served
    if model.unloaded:
        raise ModelNotReady(_why_not_ready(model))
    if version.state is VersionState.END and version.error is None:
        raise NotFound(
            f"version {number} of model {model.name!r} is not served any more; "
            "versions_to_serve and labels say which are",
            code="version_not_found",
        )
    raise ModelNotReady(
        f"version {number} of model {model.name!r} is {version.state}"
        + (f": {version.error}" if version.error else "")
    )


def _why_not_ready(model: Model) -> str:
    if model.unloaded:
        return f"model {model.name!r} has been unloaded by a client; load it again"
    if not model.versions:
        return f"model {model.name!r} has no version: {model.needs}"
    reasons = (
        f"version {v.number} is {v.state}" + (f" ({v.error})" if v.error else "")
        for v in model.versions.values()
    )
    return f"model {model.name!r} is not serving: {', '.join(reasons)}"
