"""The scripts of docs/examples/, run as a reader would; each ends by showing that it worked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LAST_LINES = {
    "adain.py": "outputs and gradients of content and style: as the definition's",
    "custom_norm.py": "largest relative difference from torch, outputs and gradients: ",
    "diffusion_block.py": "a residual block, 11 gradients: as the textbook's",
    "dit_block.py": "a DiT block, 11 gradients: as the textbook's",
    "drop_in.py": "reverted: torch.nn's modules again",
    "nnunet_block.py": "three blocks, 12 gradients: as torch.nn's",
    "style_transfer.py": "rho: 1 before, ",
    "sync_bn.py": "2 processes: parameters and running statistics are those of one",
    "transformer_block.py": "3 blocks, 31 gradients: as the textbook's",
}
LAUNCHERS = {"sync_bn.py": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")}


def test_all_examples_are_here():
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == set(LAST_LINES)


@pytest.mark.parametrize("name", LAST_LINES)
def test_example(name, tmp_path):
    """Elsewhere than in the repository: a script finds nothing but what is installed."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | settings
    done = subprocess.run(
        [sys.executable, *LAUNCHERS.get(name, ()), str(EXAMPLES / name)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(LAST_LINES[name])
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


def test_what_needs_torchrun_says_so():
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    command = [sys.executable, str(EXAMPLES / "sync_bn.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr == "start it with torchrun --nproc-per-node=2 docs/examples/sync_bn.py\n"
