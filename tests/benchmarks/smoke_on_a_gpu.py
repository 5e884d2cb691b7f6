"""`python -m tests.benchmarks.smoke_on_a_gpu`: the launches of the smoke's cases on a GPU.

Nothing is launched or compiled: sizes and tiers are those of a GPU, results are garbage. Prints,
as JSON, the kernels of each case, with "cluster" before those of a cluster.
"""

import importlib
import json
from typing import Any

import torch

import fastnorm
import fastnorm.functional as F
from benchmarks import smoke, smoke_cases
from fastnorm import dispatch
from fastnorm.kernels import clusters, launch


def main() -> None:
    launched: list[str] = []
    kernels: Any = importlib.import_module("fastnorm.kernels")
    kernels.INTERPRETED = True  # which lets tensors of a CPU pass
    dispatch.is_traced = lambda x: False

    def one(self: Any, tensors: Any, floats: Any = ()) -> bool:
        launched.append(self.name)
        return True

    def cluster(self: Any, tensors: Any, floats: Any = ()) -> bool:
        launched.append(f"cluster {self.kernel.fn.__name__}")
        return True

    torch.randn = torch.rand = lambda *size, generator, device: torch.ones(*size)  # quicker
    launch.Launch.__call__ = one  # type: ignore[method-assign]
    clusters.ClusterLaunch.__call__ = cluster  # type: ignore[method-assign]
    found = {}
    with fastnorm.use_backend("triton"):
        for case in (*smoke_cases.cases(), *smoke_cases.cluster_cases()):
            launched.clear()
            with smoke.through_kernels(case.tier):
                smoke.results(F, case, smoke.tensors(case, "cpu"))
            found[case.name] = list(launched)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
