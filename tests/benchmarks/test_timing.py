"""The GPU's clock with a stand-in for torch.cuda: which calls it makes, in which order.

The effect of these calls on a GPU is not tested here.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import timing


class Event:
    """An event that knows how many calls the device had done when it was recorded."""

    def __init__(self, device: "Device") -> None:
        self.device = device

    def record(self) -> None:
        self.done = self.device.done

    def elapsed_time(self, end: "Event") -> float:
        return (end.done - self.done) * 0.25  # milliseconds: 250 us a call


class Device:
    """Counts what it is given; what is captured runs at each replay instead."""

    def __init__(self, capturable: bool) -> None:
        self.done = 0
        self.replays = 0
        self.captured = 0
        self.capturing = False
        self.capturable = capturable
        self.alive: list[int] = []

    def work(self, name: int) -> Any:
        if not self.capturing:
            self.done += 1
        elif self.capturable:
            self.captured += 1
        else:
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")
        return torch.zeros(name)

    @contextlib.contextmanager
    def graph(self, graph: object, stream: object) -> Iterator[None]:
        self.captured, self.capturing = 0, True
        try:
            yield
        finally:
            self.capturing = False

    def replay(self) -> None:
        self.replays += 1
        self.done += self.captured


def stand_in(monkeypatch: pytest.MonkeyPatch, device: Device) -> timing.CudaClock:
    cuda = types.SimpleNamespace(
        current_device=lambda: 0,
        get_device_properties=lambda _: types.SimpleNamespace(L2_cache_size=50 << 20),
        Stream=lambda: types.SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda: None,
        stream=lambda stream: contextlib.nullcontext(),
        synchronize=lambda: None,
        empty_cache=lambda: None,
        Event=lambda enable_timing: Event(device),
        CUDAGraph=lambda: types.SimpleNamespace(replay=device.replay),
        graph=device.graph,
    )
    monkeypatch.setattr(timing.torch, "cuda", cuda)
    return timing.CudaClock()


def test_calls_are_captured_round_after_round_and_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(capturable=True)
    clock = stand_in(monkeypatch, device)
    order: list[int] = []
    calls = [lambda k=k: (order.append(k), device.work(k)) for k in range(1, 6)]
    with clock.session():
        method, samples = clock.device_us(calls)
    assert method == "graph"
    assert samples == [250.0] * clock.REPLAYS
    # 12,000 us hold 48 calls of 250 us: ten rounds of the five sets of inputs.
    assert device.captured == 50 and order[-50:] == [1, 2, 3, 4, 5] * 10
    assert device.replays == clock.REPLAYS + 1, "the first replay is not timed"


def test_what_cannot_be_captured_is_timed_by_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(capturable=False)
    clock = stand_in(monkeypatch, device)
    method, samples = clock.device_us([lambda: device.work(1)] * 3)
    assert method == "events"
    assert samples == [250.0] * clock.REPLAYS
    assert "no CUDA graph, timed with events: operation not permitted" in capsys.readouterr().out


def test_host_and_wall_times_are_taken_outside_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(capturable=True)
    clock = stand_in(monkeypatch, device)
    assert clock.host_us(lambda: device.work(1)) > 0
    assert device.done == clock.BURSTS * clock.BURST
    monkeypatch.setattr(timing.CudaClock, "EAGER_US", 1000.0)
    assert clock.eager_us(lambda: device.work(1)) > 0
    assert device.replays == 0


def test_a_copy_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(capturable=True)
    clock = stand_in(monkeypatch, device)
    monkeypatch.setattr(timing.CudaClock, "COPY_BYTES", 4000)
    clock.device = torch.device("cpu")
    copied = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, other: (device.work(1), copied(self, other))[1]
    )
    assert clock.copy_gbps() == pytest.approx(2 * 4000 / 250e-6 / 1e9)


def test_percentiles() -> None:
    spread = timing.Spread.of([float(k) for k in range(11)])
    assert (spread.p20, spread.p50, spread.p80) == (2.0, 5.0, 8.0)
