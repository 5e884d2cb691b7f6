"""Clocks: for a GPU, by replays of CUDA graphs; for a CPU, with the same interface, for rehearsals.

A *call* is a function without arguments that issues one operation and returns its output.
"""

import contextlib
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch.utils import collect_env

Call = Callable[[], object]
# If they are installed, torch from 2.13 on routes its RMS norm to kernels written with them.
REROUTING = ("nvidia-cutlass-dsl", "apache-tvm-ffi")


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of some measurements."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        return cls(cuts[1], cuts[4], cuts[7])


class Clock(Protocol):
    """The parts of a device that measure.py needs."""

    device: torch.device
    l2_bytes: int

    def session(self) -> contextlib.AbstractContextManager[None]:
        """Everything about a case, its forward included, happens inside this block."""

    def synchronize(self) -> None:
        """Wait for the device; raises the device's errors."""

    def copy_gbps(self) -> float:
        """Bytes read and written per second, in 10^9, of a large copy on the device."""

    def device_us(self, calls: Sequence[Call]) -> tuple[str, list[float]]:
        """How the calls were timed, and samples of the device's microseconds for one call."""

    def eager_us(self, call: Call) -> float:
        """Microseconds for each of many calls in a row, until the device has finished them."""

    def host_us(self, call: Call) -> float:
        """Microseconds until the host has issued one call to an idle device."""


def wall_us(call: Call, count: int) -> float:
    """Microseconds of the host for each of `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return 1e6 * (time.perf_counter() - start) / count


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class CudaClock:
    """One GPU, on its own stream: the stream that captures has to be the forward's."""

    REPLAY_US = 12_000.0  # for one replay, so that the cost of its launch does not matter
    MOST_CALLS = 400  # in one graph, or one for each input set if these are more
    REPLAYS = 15
    COPY_BYTES = 2 << 30
    EAGER_US = 20_000.0
    BURSTS, BURST = 20, 10  # a burst is far shorter than the driver's queue of launches

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.l2_bytes: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        self.stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            torch.cuda.synchronize()
            gc.collect()  # autograd's cycles hold tensors
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def copy_gbps(self) -> float:
        source = torch.randn(self.COPY_BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        samples = self._sampled(lambda: target.copy_(source), 1, self.REPLAYS)
        return 2 * self.COPY_BYTES / statistics.median(samples) / 1e3

    def device_us(self, calls: Sequence[Call]) -> tuple[str, list[float]]:
        for call in (*calls[:1], *calls):  # the first call compiles and autotunes
            call()

        def every_call() -> None:
            for call in calls:
                call()

        (estimate,) = self._sampled(every_call, len(calls), times=1)
        wanted = min(math.ceil(self.REPLAY_US / estimate), self.MOST_CALLS)
        rounds = math.ceil(wanted / len(calls))
        try:
            graph = self._captured(calls, rounds)
        except Exception as error:
            torch.cuda.synchronize()  # an operator that waits for the device; a broken one raises
            print("    no CUDA graph, timed with events:", str(error).partition("\n")[0])
            return "events", self._sampled(every_call, len(calls), self.REPLAYS)
        return "graph", self._sampled(graph.replay, rounds * len(calls), self.REPLAYS)

    def _captured(self, calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
        """All calls, `rounds` times over.

        It keeps as many results as there are input sets. So a call writes memory that was last used
        as long ago as its inputs were.
        """
        graph = torch.cuda.CUDAGraph()
        kept: deque[object] = deque(maxlen=len(calls))
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(rounds):
                for call in calls:
                    kept.append(call())
        return graph

    def _sampled(self, work: Call, count: int, times: int) -> list[float]:
        """Microseconds for each of the `count` calls in `work`, by events, after a warm-up."""
        work()
        pairs = []
        for _ in range(times):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) / count for start, end in pairs]

    def eager_us(self, call: Call) -> float:
        def sample(count: int) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(count):
                call()
            torch.cuda.synchronize()
            return 1e6 * (time.perf_counter() - start) / count

        count = min(max(int(self.EAGER_US / sample(3)), 1), 1000)
        return statistics.median(sample(count) for _ in range(3))

    def host_us(self, call: Call) -> float:
        samples: list[float] = []
        begin = time.perf_counter()
        gc.disable()
        try:
            while len(samples) < self.BURSTS and time.perf_counter() - begin < 0.2:
                torch.cuda.synchronize()
                samples.append(wall_us(call, self.BURST))
        finally:
            gc.enable()
        torch.cuda.synchronize()
        return statistics.median(samples)


class CpuClock:
    """A CPU by its wall clock. For rehearsals: its times say nothing about a GPU."""

    SAMPLES = 2
    COPY_BYTES = 32 << 20

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.l2_bytes = 1500  # so that tiny cases rotate among a few sets, and some have no warm L2

    def session(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        pass

    def copy_gbps(self) -> float:
        source = torch.randn(self.COPY_BYTES // 4)
        target = torch.empty_like(source)
        return 2 * self.COPY_BYTES / wall_us(lambda: target.copy_(source), 10) / 1e3

    def device_us(self, calls: Sequence[Call]) -> tuple[str, list[float]]:
        calls[0]()
        return "cpu", [wall_us(calls[k % len(calls)], 1) for k in range(self.SAMPLES)]

    def eager_us(self, call: Call) -> float:
        return wall_us(call, 1)

    def host_us(self, call: Call) -> float:
        return wall_us(call, 1)


def clock() -> Clock:
    """The GPU's clock if there is one, else the CPU's."""
    return CudaClock() if torch.cuda.is_available() else CpuClock()


def driver() -> str | None:
    """NVIDIA's driver, according to nvidia-smi."""
    return collect_env.get_nvidia_driver_version(collect_env.run)


def installed(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, object]:
    """The versions that a measurement depends on; `gpu` is None exactly on a CPU."""
    import triton  # not at the top: CPU pairs do not need it

    on_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cpu": cpu_model(),
        "driver": driver() if on_gpu else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
        **{name.replace("-", "_"): installed(name) for name in REROUTING},
        "python": platform.python_version(),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
    }
