"""The host's side of a launch without a GPU: the fast path, counters, and tiers chosen by hand."""

import contextlib
import json
import threading
from types import SimpleNamespace

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import launch, tiers
from fastnorm.kernels.launch import Launch
from tests.conftest import DEVICE, make_input, running
from tests.kernels.compiling import output_of
from tests.kernels.tilings import fresh_plans

STREAM = 77


class Tensor:
    """A tensor on a GPU, as far as a launch asks."""

    is_cuda = True

    def __init__(self, address, device=0):
        self.address, self.device = address, device

    def data_ptr(self):
        return self.address

    def get_device(self):
        return self.device


class Handle:
    """A compiled kernel that notes how it is run."""

    function, packed_metadata = "function", "metadata"

    def __init__(self):
        self.runs = []

    def run(self, *args):
        self.runs.append(args)


def a_kernel(x_ptr, y_ptr, z_ptr, eps, N, S, FLAG, BLOCK, NAME):
    pass


class Kernel:
    """A JITFunction that notes what it is launched with, and gives one handle a device."""

    fn = staticmethod(a_kernel)

    def __init__(self, current):
        self.current, self.launches, self.handles = current, [], {}

    def __getitem__(self, grid):
        def launch_it(*args, **kwargs):
            self.launches.append((grid, args, kwargs))
            return self.handles.setdefault(self.current[0], Handle())

        return launch_it


@pytest.fixture
def gpu(monkeypatch):
    """The current device, in a list; entering torch.cuda.device(...) changes it."""
    current = [0]

    @contextlib.contextmanager
    def device(index):
        former, current[0] = current[0], index
        yield
        current[0] = former

    active = SimpleNamespace(get_current_stream=lambda device: STREAM + device)
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(launch, "_counters", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return current


@pytest.fixture
def kernel(gpu):
    return Kernel(gpu)


def make_launch(kernel):
    constants = {"NAME": "relu", "BLOCK": 64, "FLAG": True}  # not in the kernel's order
    return Launch(kernel, 12, (5, 6), constants, 8, 96, cooperative=True)


TENSORS = (Tensor(1 << 40), None, Tensor(4096))


def test_the_first_call_goes_through_triton(kernel):
    make_launch(kernel)(TENSORS, (0.5,))
    ((grid, args, kwargs),) = kernel.launches
    assert grid == (12,)
    assert args == (*TENSORS, 0.5, 5, 6)
    assert kwargs == {
        "FLAG": True, "BLOCK": 64, "NAME": "relu", "num_warps": 8, "maxnreg": 96,
        "enable_fp_fusion": True, "launch_cooperative_grid": True,
    }  # fmt: skip
    assert not kernel.handles[0].runs


def test_later_calls_run_the_compiled_kernel(kernel):
    each = make_launch(kernel)
    each(TENSORS, (0.5,))
    each((Tensor(32), None, Tensor(64)), (0.25,))
    each((Tensor(16), Tensor(48), None), (0.5,))
    assert len(kernel.launches) == 1
    start = (12, 1, 1, STREAM, "function", "metadata", None, None, None)
    end = (5, 6, True, 64, "relu")
    assert kernel.handles[0].runs == [
        (*start, 32, None, 64, 0.25, *end),
        (*start, 16, 48, None, 0.5, *end),
    ]


@pytest.mark.parametrize("address", [4104, 4097, (1 << 40) + 8])
def test_misaligned_tensors_go_through_triton(kernel, address):
    """Whose kernel, compiled for less alignment, is not kept."""
    each = make_launch(kernel)
    misaligned = (TENSORS[0], None, Tensor(address))
    each(misaligned, (0.5,))
    assert not each._handles
    each(TENSORS, (0.5,))
    each(misaligned, (0.5,))
    assert len(kernel.launches) == 3
    each(TENSORS, (0.5,))
    assert len(kernel.launches) == 3 and len(kernel.handles[0].runs) == 1


def test_hooks_see_every_launch(kernel, monkeypatch):
    each = make_launch(kernel)
    each(TENSORS, (0.5,))
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(launch.triton.knobs.runtime, "launch_enter_hook", hook)
    each(TENSORS, (0.5,))
    assert len(kernel.launches) == 2
    hook.calls.clear()
    each(TENSORS, (0.5,))
    assert len(kernel.launches) == 2 and len(kernel.handles[0].runs) == 1


def test_each_device_has_its_own_handle_and_stream(kernel):
    each = make_launch(kernel)
    there = (Tensor(4096, device=1), None, Tensor(8192, device=1))
    for tensors in (TENSORS, there, TENSORS, there):
        each(tensors, (0.5,))
    assert len(kernel.launches) == 2
    assert [kernel.handles[device].runs[0][3] for device in (0, 1)] == [STREAM, STREAM + 1]


def test_launches_are_recorded_on_both_paths(kernel):
    each = make_launch(kernel)
    with launch.record() as launched:
        each(TENSORS, (0.5,))
        each(TENSORS, (0.5,))
    assert launched == ["a_kernel"] * 2


def on_gpu(device=0):
    return SimpleNamespace(is_cuda=True, get_device=lambda: device, device="cpu")


def test_counters_are_of_a_kind_a_device_and_a_stream(gpu, monkeypatch):
    first = launch.counters(on_gpu(), "tickets", 5)
    assert first.dtype == torch.int32 and first.numel() >= 5 and not first.any()
    assert launch.counters(on_gpu(), "tickets", 3) is first
    others = [launch.counters(on_gpu(), "barriers", 5), launch.counters(on_gpu(1), "tickets", 5)]
    monkeypatch.setattr(launch.driver.active, "get_current_stream", lambda device: 1)
    others.append(launch.counters(on_gpu(), "tickets", 5))
    assert len({id(each) for each in (first, *others)}) == 4


def test_counters_grow_and_are_zero(gpu):
    first = launch.counters(on_gpu(), "tickets", 5)
    more = launch.counters(on_gpu(), "tickets", first.numel() + 1)
    assert more.numel() > first.numel() and not more.any()
    assert launch.counters(on_gpu(), "tickets", 5) is more
    assert launch.counters(on_gpu(), "tickets", 0) is None


def test_a_graph_brings_its_own_counters(gpu, monkeypatch):
    """Two replays may run at once, on streams that nobody knows while it is captured."""
    kept = launch.counters(on_gpu(), "tickets", 5)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = [launch.counters(on_gpu(), "tickets", 5) for _ in range(2)]
    assert len({each.data_ptr() for each in (kept, *captured)}) == 3
    assert all(each.numel() == 5 and not each.any() for each in captured)
    monkeypatch.undo()
    assert not any(each is found for each in captured for found in launch._counters.values())


def test_each_thread_has_counters_of_its_own(gpu):
    x, found = torch.zeros(1), []
    here = launch.counters(x, "tickets", 5)
    thread = threading.Thread(target=lambda: found.append(launch.counters(x, "tickets", 5)))
    thread.start()
    thread.join()
    assert found[0] is not here and launch.counters(x, "tickets", 5) is here


def test_a_failed_launch_leaves_no_counters(gpu):
    """Some of its programs may have arrived at a counter, the others never will."""

    class Broken(Kernel):
        def __getitem__(self, grid):
            def fail(*args, **kwargs):
                raise KeyboardInterrupt

            return fail

    launch.counters(on_gpu(), "tickets", 5).fill_(3)
    with pytest.raises(KeyboardInterrupt):
        make_launch(Broken(gpu))(TENSORS, (0.5,))
    assert not launch.counters(on_gpu(), "tickets", 5).any()


def test_the_fast_path_hands_over_what_triton_does():
    """Every kernel, argument by argument."""
    launches = json.loads(output_of("tests.kernels.fast_path"))
    assert len({each["kernel"] for each in launches}) == 22
    for each in launches:
        assert each["fast"] == each["triton"], each["kernel"]


# --- tiers chosen by hand ---


@pytest.fixture
def no_plans():
    with fresh_plans():
        yield


def test_force_refuses_what_is_no_tier():
    before = tiers.state()
    with pytest.raises(ValueError) as caught, tiers.force("fast"):
        pass
    assert all(tier in str(caught.value) for tier in ("fast", *tiers.TIERS))
    assert tiers.state() == before


def test_tiers_nest_and_restore_after_an_exception():
    assert tiers.state() == (False, None)
    with pytest.raises(KeyError), tiers.cooperative(True), tiers.force("one_program"):
        assert tiers.state() == (True, "one_program")
        with tiers.cooperative(False), tiers.force("streaming"):
            assert tiers.state() == (False, "streaming")
        assert tiers.state() == (True, "one_program")
        raise KeyError
    assert tiers.state() == (False, None)


LARGE = (3, 2, 400, 500)  # more than one program of the interpreter holds, over the batch
LONG = (3, 20000)


@pytest.fixture
def interpreted():
    if DEVICE != "cpu":
        pytest.skip("on a GPU the sizes are others")


def test_a_forced_tier_without_room_says_so(interpreted, no_plans):
    x = make_input(LARGE, dtype=torch.float32)
    with running("triton", launches=False), tiers.force("one_program"):
        with pytest.raises(RuntimeError, match=r"one_program.*no room"):
            F.batch_norm(x, None, None, training=True)
        with pytest.raises(RuntimeError, match=r"one_program.*no room"):
            F.layer_norm(make_input(LONG, dtype=torch.float32), LONG[1:])


def test_the_interpreter_has_no_clusters(interpreted, no_plans):
    """Its programs run one after another: a barrier among them would never end."""
    with pytest.raises(RuntimeError, match=r"cluster.*TRITON_INTERPRET"), tiers.force("cluster"):
        pass
    assert tiers.state() == (False, None)
    x, streamed = make_input(LARGE, dtype=torch.float32), ["moments_kernel", "apply_kernel"]
    with tiers.cooperative(True), running("triton") as launched:
        F.batch_norm(x, None, None, training=True)
        F.layer_norm(make_input(LONG, dtype=torch.float32), LONG[1:])
    assert launched == [*streamed, "row_moments_kernel", "row_apply_kernel"]
