"""Process groups for tests: a script of this folder run by each rank, on CPUs."""

import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
LONGEST = 300  # seconds that a script may run
TIMEOUT = 120  # seconds that a collective call may wait for others


def join(rank: int, ranks: int, port: int) -> None:
    """Make this process one of the group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )  # fmt: skip


def run_ranks(module: str, ranks: int, folder: Path, longest: int = LONGEST) -> list:
    """What each rank of `python -m module RANK RANKS PORT FOLDER` saved as FOLDER/RANK.pt, in
    `longest` seconds at most.

    Whatever happens, no process is left and nothing waits.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # Without the GPU, where there is one: more processes, and the backends a CPU has.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(ranks), str(port), str(folder)],
            cwd=ROOT, env=environment, stderr=(folder / f"{rank}.log").open("w"),
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        codes = [process.wait(longest) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"{rank}.log").read_text()[-3000:] for rank in range(ranks)]
    assert codes == [0] * ranks, "\n\n".join(logs)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
