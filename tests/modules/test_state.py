"""State: copies and checkpoints, dtypes and devices, beside torch.nn's modules."""

import copy
import io

import pytest
import torch
from torch import nn

import fastnorm
from tests.conftest import DEVICE, make_input
from tests.modules.cases import (
    ARGUMENTS,
    BIN,
    MODULES,
    TWINS,
    C,
    assert_same_state,
    make,
    randomised,
    shape_of,
)

# --- copies and checkpoints ---


@pytest.mark.parametrize("name", MODULES)
def test_a_saved_module_comes_back(name):
    """torch.save of the module and of its state_dict, the latter read with weights_only."""
    module = randomised(make(name, activation="silu"))
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(module, whole), torch.save(module.state_dict(), state)
    whole.seek(0), state.seek(0)
    twin = torch.load(whole, weights_only=False)
    assert type(twin) is type(module) and repr(twin) == repr(module)
    assert_same_state(twin, module.state_dict())
    other = make(name, activation="silu")
    other.load_state_dict(torch.load(state, weights_only=True))
    assert_same_state(other, module.state_dict())
    x = make_input(shape_of(name))
    assert torch.equal(twin.eval()(x), module.eval()(x))


def test_deepcopy_of_a_sync_batch_norm():
    module = randomised(fastnorm.SyncBatchNorm(C, activation="relu", device=DEVICE))
    twin = copy.deepcopy(module)
    assert twin.activation == "relu" and twin.process_group is None
    assert_same_state(twin, module.state_dict())
    assert twin.running_mean is not module.running_mean


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_are_torchs_in_both_directions(name, assign):
    """Strictly, nested in a model, with the buffers of either loaded into the other."""
    ours, theirs = (nn.Sequential(nn.Identity(), make(name, package)) for package in (fastnorm, nn))
    state = randomised(theirs).state_dict()
    ours.load_state_dict(state, assign=assign)
    assert_same_state(ours, state)
    back = nn.Sequential(nn.Identity(), make(name, nn))
    back.load_state_dict(ours.state_dict(), assign=assign)
    assert_same_state(back, state)


@pytest.mark.parametrize("name", BIN)
def test_batch_instance_norm_reads_a_batch_norm(name):
    """A batch norm's checkpoint lacks rho alone; so does what it leaves unread."""
    theirs = randomised(make(name.replace("BatchInstance", "Batch"), nn))
    ours = make(name)
    found = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert found.missing_keys == ["rho"] and not found.unexpected_keys
    with pytest.raises(RuntimeError, match="rho"):
        ours.load_state_dict(theirs.state_dict())
    found = theirs.load_state_dict(randomised(ours).state_dict(), strict=False)
    assert found.unexpected_keys == ["rho"] and not found.missing_keys


def test_checkpoints_without_a_count_of_batches():
    """Version 1 of torch's format, from before num_batches_tracked."""
    for name in ("BatchNorm2d", "BatchInstanceNorm2d", "InstanceNorm2d", "SyncBatchNorm"):
        module = randomised(make(name))
        state = module.state_dict()
        del state["num_batches_tracked"]
        state._metadata[""]["version"] = 1
        module.load_state_dict(state)
        assert module.num_batches_tracked == 5


# --- dtypes and devices ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_to_a_dtype(name, dtype):
    """Parameters and statistics follow, the count of batches stays an integer."""
    module = randomised(make(name, dtype=torch.float32, activation="relu")).to(dtype)
    for key, tensor in module.state_dict().items():
        wanted = torch.int64 if key == "num_batches_tracked" else dtype
        assert tensor.dtype == wanted, key
    y = module(make_input(shape_of(name), dtype=dtype))
    assert y.dtype == dtype and (y >= 0).all()


@pytest.mark.parametrize("how", ["argument", "context", "to"])
@pytest.mark.parametrize("name", MODULES)
def test_meta_device(name, how):
    """Built or moved there, made real by to_empty and reset_parameters: as if built here."""
    if how == "context":
        with torch.device("meta"):
            module = make(name, device=None)
    else:
        module = make(name, device="meta") if how == "argument" else make(name).to("meta")
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    module.to_empty(device=DEVICE)
    for tensor in (*module.parameters(), *module.buffers()):  # what empty memory may hold
        tensor.data.fill_(-3)
    module.reset_parameters()
    assert_same_state(module, make(name).state_dict())


@pytest.mark.parametrize("name", MODULES)
def test_skip_init(name):
    module = nn.utils.skip_init(
        getattr(fastnorm, name), *ARGUMENTS[name][0], dtype=torch.float64, device=DEVICE
    )
    state = randomised(make(name)).state_dict()
    module.load_state_dict(state)
    assert_same_state(module, state)


@pytest.mark.parametrize("name", MODULES)
def test_a_checkpoint_assigned_to_a_meta_module(name):
    state = randomised(make(name)).state_dict()
    module = make(name, device="meta")
    module.load_state_dict(state, assign=True)
    assert_same_state(module, state)
    assert module(make_input(shape_of(name))).isfinite().all()
