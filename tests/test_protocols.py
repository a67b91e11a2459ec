"""The protocols side by side: what is measured is the same over each."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loadtest import protocols
from loadtest.harness.client import OK, Failure, Measurement
from loadtest.harness.gateway import gateway
from loadtest.harness.grpc_baseline import bare_grpc
from loadtest.harness.processes import Server, ServerFailed
from loadtest.harness.workloads import digits
from loadtest.protocol_subjects import BARE_GRPC, RAW_JPEG, SUBJECTS
from tests.support import stub_version


def test_all_protocols_tell_the_same_of_an_image(tmp_path: Path) -> None:
    stub_version(tmp_path, "inception", side=28)
    images = digits()[:3]
    window = {"duration_seconds": 0.2, "warm_up_seconds": 0}
    with gateway(tmp_path, "--engine", "stub", model="inception") as server:
        answers = protocols.agreed_answers(server, images)
        assert answers.keys() == {one.name for one in SUBJECTS}
        for one in (SUBJECTS[0], SUBJECTS[-2], SUBJECTS[-1]):
            expected = answers[one.name]
            good = one.drive(server, images, expected, concurrency=3, **window)
            assert (good.failures, good.server_cpu_seconds > 0) == (0, True)
            others = [*expected[1:], expected[0]]
            bad = one.drive(server, images, others, concurrency=3, **window)
            assert bad.count(Failure.WRONG_ANSWER) == len(bad.statuses) > 0


def test_the_bare_method_answers_as_the_gateway_would() -> None:
    with bare_grpc() as server:
        (answer,) = BARE_GRPC.answers(server, digits()[:1])
    assert BARE_GRPC.best(answer) == 1


def test_protocols_that_disagree_are_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def telling(name: str, best: int) -> Any:
        return SimpleNamespace(
            name=name, best=lambda _: best, answers=lambda *_: [b"answer"]
        )

    monkeypatch.setattr(
        protocols, "SUBJECTS", [telling(RAW_JPEG, 1), telling("other", 2)]
    )
    with pytest.raises(ServerFailed, match=r"other: \[2\]; HTTP, JPEG: \[1\]"):
        protocols.agreed_answers(Server(address="", pid=0), [b"image"])


def test_a_protocols_ratio_is_of_the_same_round() -> None:
    def rounds(*seconds: float) -> Sequence[Measurement]:
        return [
            Measurement(
                statuses=np.full(10, OK, np.int16),
                latencies_seconds=np.full(10, 0.1),
                sent_at_seconds=np.zeros(10),
                wall_seconds=1,
                cpu_seconds=0.1,
                server_cpu_seconds=one,
            )
            for one in seconds
        ]

    other = "TF Serving REST, JSON"
    base, cost = protocols.costs_of(
        {(RAW_JPEG, 16): rounds(1, 2, 4), (other, 16): rounds(2, 4.2, 7.6)},
        body_bytes={RAW_JPEG: 600, other: 4000},
    )
    assert (base.of_raw_jpeg, base.cpu_seconds_per_request) == (1, 0.2)
    assert cost.of_raw_jpeg == pytest.approx(2)
    assert cost.cpu_seconds_per_request == pytest.approx(0.42)
    assert (cost.answers_per_second, cost.failures, cost.body_bytes) == (10, 0, 4000)
