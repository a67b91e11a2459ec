"""The benchmark of GPUs: its sums, what it refuses, and a whole run on a processor."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.gpu import batching, survey, worker
from loadtest.gpu.__main__ import main
from loadtest.gpu.cost import multiply_adds
from loadtest.gpu.peaks import peaks_of
from loadtest.gpu.plot import draw
from loadtest.gpu.process import WorkerFailed, answers
from loadtest.gpu.results import (
    Batching,
    Case,
    Failure,
    Point,
    Results,
    Timing,
    from_line,
    to_line,
)
from loadtest.gpu.summary import described, summary
from models.architectures import drawable, named
from models.summary import cost
from service.warm_up import LARGEST_SIZE

ROOT = Path(__file__).parents[1]
CASE = Case(runtime="jax", model="googlenet", precision="float16")
# GoogLeNet at 10,000 images a second, on a chip with a peak of 989.5.
TFLOPS, PEAK = 31.6, 989.5


def timing(rate: float, *, rows: int) -> Timing:
    return Timing(
        calls=20,
        images_per_second=rate,
        median_seconds=rows / rate,
        p90_seconds=1.1 * rows / rate,
        p99_seconds=None,
    )


def point(rows: int, rate: float, *, peak: float | None = PEAK) -> Point:
    return Point(
        case=CASE,
        batch_size=rows,
        first_call_seconds=3.5,
        on_device=timing(rate, rows=rows),
        with_copy=timing(rate / 2, rows=rows),
        tflops=TFLOPS,
        share_of_peak=None if peak is None else TFLOPS / peak,
    )


def results(*, peak: float | None = PEAK) -> Results:
    return Results(
        machine={"date": "2030-01-02T03:04:05+00:00"},
        device={
            "kind": "gpu",
            "name": "NVIDIA H100 80GB HBM3",
            "peak_tflops": {} if peak is None else {"float16": peak},
        },
        settings={},
        runtimes={
            "jax": {"title": "Keras on JAX"},
            "torch": {"title": "Keras on PyTorch", "skipped": "it sees no GPU"},
        },
        models={"googlenet": {"multiply_adds": 1_583_000_000}},
        points=[point(1, 400, peak=peak), point(64, 10_000, peak=peak)],
        batching=[
            Batching(
                case=CASE,
                largest_batch_size=64,
                submitters=128,
                images_per_second=4000,
                of_engine=0.8,
                p50_seconds=0.03,
                p99_seconds=0.05,
                mean_batch_size=60,
            )
        ],
        failures=[Failure(case=CASE, batch_size=128, reason="out of memory")],
    )


@pytest.mark.parametrize(
    ("name", "published"),
    [("googlenet", 1.58e9), ("inception_v3", 5.71e9), ("vgg16", 15.47e9)],
)
def test_multiply_adds_are_what_is_published(name: str, published: float) -> None:
    architecture = named(name)
    network = architecture.outline(architecture.defaults)
    assert multiply_adds(network) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["lenet", "inception", "inception_subclassed"])
def test_multiply_adds_are_those_that_the_summary_finds_in_the_graph(
    name: str,
) -> None:
    architecture = named(name)
    network = architecture.build(architecture.defaults)
    assert multiply_adds(network) == cost(drawable(network)).multiply_adds


@pytest.mark.parametrize(
    ("device", "float16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
    ],
)
def test_the_peaks_of_common_chips_are_known(device: str, float16: float) -> None:
    assert peaks_of(device)["float16"] == float16


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD EPYC",
    ],
)
def test_a_chip_that_only_resembles_a_known_one_has_no_peak(device: str) -> None:
    assert not peaks_of(device)


def test_chips_before_ampere_have_no_peak_in_what_they_lack() -> None:
    assert peaks_of("Tesla T4").keys() == {"float32", "float16"}


def test_tails_are_told_only_of_calls_that_are_many_enough() -> None:
    few = worker.timing([0.1] * 9, rows=4)
    assert (few.calls, few.p90_seconds, few.p99_seconds) == (9, None, None)
    some = worker.timing([*[0.1] * 80, *[0.3] * 19], rows=4)
    assert (some.p90_seconds, some.p99_seconds) == (pytest.approx(0.3), None)
    assert worker.timing([0.1] * 100, rows=4).p99_seconds == pytest.approx(0.1)
    assert few.images_per_second == pytest.approx(40)


def test_a_slow_call_is_repeated_however_short_the_time() -> None:
    calls: list[None] = []
    measured = worker.timed(lambda: calls.append(None), rows=1, seconds=0)
    assert measured.calls == len(calls) == worker.LEAST_CALLS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory\nmore"), "out of memory"),
        (MemoryError(), "out of memory"),
        (ValueError("no kernel\nfor this"), "ValueError: no kernel"),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(
    error: Exception, reason: str
) -> None:
    assert worker.reason(error) == reason


def test_a_runtime_that_cannot_be_loaded_is_a_failure_of_its_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    task = worker.Task(
        case=CASE, batch_sizes=(1,), seconds=0, batcher_seconds=0, peak_tflops=None
    )
    (failure,) = worker.measure(task)
    assert isinstance(failure, Failure)
    assert "jax" in failure.reason


def test_a_process_that_breaks_off_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho first\necho no kernel >&2\nexit 3\n")
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    lines = answers("measure", {}, runtime="jax", device="cpu")
    assert next(lines) == "first\n"
    with pytest.raises(WorkerFailed, match="status 3, no kernel"):
        next(lines)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lenot", "there is no architecture 'lenot'"),
        ("siamese", "siamese takes several images at a time"),
    ],
)
def test_a_network_that_cannot_be_measured_is_refused(
    model: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = worker.probe("tensorflow", [model])
    monkeypatch.setattr(survey, "answers", lambda *_, **__: [json.dumps(probed)])
    with pytest.raises(SystemExit, match=message):
        main(["--runtimes", "tensorflow", "--models", model])


def test_the_batcher_is_tried_with_the_largest_size_of_a_gateway() -> None:
    assert worker.GATEWAYS_LARGEST_SIZE == LARGEST_SIZE


def test_the_batcher_fills_its_batches_and_pads_them_to_measured_sizes() -> None:
    sizes: list[int] = []

    def predict(images: Any) -> Any:
        sizes.append(len(images))
        return np.zeros((len(images), 2), np.float32)

    measured = asyncio.run(
        batching.measure(
            CASE,
            predict,
            np.zeros((4, 2, 2, 1), np.uint8),
            # What costs the same for every size is best in the largest.
            {1: 0.01, 4: 0.01, 8: 0.01},
            engine_images_per_second=1000,
            seconds=0.1,
        )
    )
    assert set(sizes) <= {1, 4, 8}
    assert (measured.largest_batch_size, measured.submitters) == (8, 16)
    assert 1 <= measured.mean_batch_size <= 8
    assert measured.of_engine == measured.images_per_second / 1000
    assert 0 < measured.p50_seconds <= measured.p99_seconds


def test_what_a_worker_sends_is_read_as_it_was() -> None:
    whole = results()
    for one in (*whole.points, *whole.batching, *whole.failures):
        assert from_line(to_line(one)) == one


def test_a_file_of_results_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = results()
    whole.write(tmp_path / "new" / "gpu.json")
    assert Results.read(tmp_path / "new" / "gpu.json") == whole


def test_the_summary_tells_the_best_and_what_was_left_out() -> None:
    text = summary(results())
    assert text.startswith("NVIDIA H100 80GB HBM3 (GPU)")
    (row,) = [x for x in text.splitlines() if x.startswith("googlenet, jax, float16 ")]
    rates = ["10,000.0", "64", "3.2%", "5,000.0", "64", "5.00", "ms"]
    batcher = ["4,000.0", "80.0%", "50.00", "ms"]
    assert row.split()[3:] == [*rates, *batcher]
    assert "Keras on PyTorch: it sees no GPU" in text
    assert "googlenet, jax, float16, batch 128: out of memory" in text
    assert "peak is not known" in summary(results(peak=None))


def test_each_measured_point_is_told_in_a_line() -> None:
    (first, _), (batches,), _ = (
        [described(one) for one in some]
        for some in (results().points, results().batching, results().failures)
    )
    assert first == (
        "googlenet, jax, float16, batch 1: 400.0 images/s, 2.50 ms; "
        "with copies 200.0 images/s, 5.00 ms"
    )
    assert "80% of the engine" in batches


@pytest.mark.parametrize("peak", [PEAK, None])
def test_the_plot_has_a_row_for_each_network(peak: float | None) -> None:
    figure = draw(results(peak=peak))
    rates, latencies, use = figure.axes
    assert rates.get_title() == "googlenet"
    assert list(rates.lines[0].get_ydata()) == [400, 10_000]
    assert list(latencies.lines[0].get_ydata()) == pytest.approx([5, 12.8])
    wanted = "share" if peak else "TFLOP/s"
    assert wanted in use.get_ylabel()


def test_a_plot_is_drawn_later_from_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    results().write(file)
    main(["--plot", str(file)])
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "gpu.png" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--runtimes", "tensorflow", "--output", str(tmp_path)])
    message = str(ended.value)
    assert message.startswith("no runtime with a GPU is here (TensorFlow: it sees no")
    assert "--device cpu" in message
    assert not list(tmp_path.iterdir())


def test_the_arithmetic_of_tensor_cores_is_not_measured_on_a_processor() -> None:
    with pytest.raises(SystemExit, match="tf32 is for GPUs"):
        main(["--device", "cpu", "--precisions", "tf32"])


def test_a_whole_run_on_a_processor_says_that_it_was_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        "--device cpu --runtimes tensorflow --models inception --precisions bfloat16 "
        "--batch-sizes 2 1 --seconds 0.05 --batcher-seconds 0.2 "
        f"--peak-tflops bfloat16=2 --output {tmp_path}".split()
    )
    assert "(processor, not a GPU)" in capsys.readouterr().out
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert document["device"]["kind"] == "cpu"
    assert document["failures"] == []
    run = Results.read(tmp_path / "gpu.json")
    assert [one.batch_size for one in run.points] == [1, 2]
    multiply_adds_of_one = run.models["inception"]["multiply_adds"]
    for one in run.points:
        flops = 2 * multiply_adds_of_one * one.on_device.images_per_second
        assert one.tflops == pytest.approx(flops / 1e12)
        assert one.share_of_peak == one.tflops / 2
    (batches,) = run.batching
    assert batches.images_per_second > 0
    assert (tmp_path / "gpu.png").is_file()


def test_it_needs_neither_an_installation_nor_more_than_keras() -> None:
    code = """
import sys
for package in ("cyclopts", "fastapi", "matplotlib", "PIL", "prometheus_client",
                "pydantic", "pydantic_settings", "psutil"):
    sys.modules[package] = None  # importing it fails
import loadtest.gpu.__main__
assert "keras" not in sys.modules  # whose runtime only its workers choose
import loadtest.gpu.worker
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_tells_of_all_options_and_of_no_others() -> None:
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    helped = subprocess.run(
        [sys.executable, "-m", "loadtest.gpu", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = {word.strip(",[]") for word in helped.split() if word.startswith("--")}
    for option in options - {"--help"}:
        assert f"`{option}" in page, option
