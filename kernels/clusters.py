"""Launches of the cluster tier: as many clusters as the GPU holds at once, and never more."""

from typing import Any

import torch

from fastnorm.contract import Tensors

from . import launch
from .geometry import Geometry
from .launch import Launch
from .occupancy import LIMITS, occupancy

# No GPU holds more: 148 SMs of 16 programs of 4 warps.
MOST_CLUSTERS = 4096
# The driver's message if it cannot hold all programs of a launch at once. This happens if a process
# has only a part of the GPU (MPS, green contexts).
TOO_LARGE = "too many blocks in cooperative launch"


class ClusterLaunch:
    """A cluster kernel; its grid follows from the resources that the compiled kernel needs.

    The interpreter has no clusters: it runs one program after another, so a barrier would never
    end.
    """

    def __init__(self, kernel: Any, geometry: Geometry, choices: Any) -> None:
        self.kernel, self.geometry, self.choices = kernel, geometry, choices
        self._launches: dict[int, tuple[int, Launch | None]] = {}

    def clusters(self, tensors: Tensors, floats: tuple[float, ...]) -> int:
        """Clusters in a launch on the first tensor's device; 0 if it cannot hold one.

        Only device, dtypes and alignment of the tensors matter. Tensors not aligned to 16 bytes
        would need another compiled kernel, and its number of clusters is not known: they get 0.
        """
        x = tensors[0]
        assert x is not None
        if launch.INTERPRETED:
            return 0
        if x.is_cuda and any(t is not None and t.data_ptr() % 16 for t in tensors):
            return 0
        device = x.get_device()
        if device not in self._launches:
            count = self._at_once(x, tensors, floats)
            self._launches[device] = count, self._launch(count) if count else None
        return self._launches[device][0]

    def __call__(self, tensors: Tensors, floats: tuple[float, ...] = ()) -> bool:
        """Launch on the first tensor's device. False if nothing was done: the device cannot hold
        one whole cluster, or the driver says that it cannot hold the computed number."""
        if self.clusters(tensors, floats) == 0:
            return False
        x = tensors[0]
        assert x is not None
        _, found = self._launches[x.get_device()]
        assert found is not None
        try:
            found(tensors, floats)
        except RuntimeError as error:
            if TOO_LARGE not in str(error):
                raise
            self._launches[x.get_device()] = 0, None
            return False
        return True

    def _at_once(self, x: torch.Tensor, tensors: Tensors, floats: tuple[float, ...]) -> int:
        """As many clusters as x's device holds at once, and no more than there are units."""
        units = min(self.geometry.units, MOST_CLUSTERS)
        if not x.is_cuda:
            return units
        with torch.cuda.device(x.device):
            handle = self._launch(1).compile(tensors, floats)
        device = torch.cuda.get_device_properties(x.device)
        capability = device.major * 10 + device.minor
        if capability not in LIMITS:
            return 0
        on_one = occupancy(
            capability, handle.n_regs, handle.metadata.shared, self.geometry.num_warps
        )
        at_once = device.multi_processor_count * on_one.blocks
        return min(units, at_once // self.geometry.members)

    def _launch(self, clusters: int) -> Launch:
        geometry = self.geometry
        return Launch(
            self.kernel,
            clusters * geometry.members,
            geometry.scalars(),
            {"K": self.choices},
            geometry.num_warps,
            128,  # 16 warps an SM: the more programs share one, the larger the cluster
            cooperative=True,
        )
