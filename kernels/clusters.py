"""Launching the cluster tier: as many clusters as the GPU holds at once, and never more."""

from typing import Any

import torch

from . import launch
from .geometry import Geometry
from .launch import Launch
from .occupancy import LIMITS, occupancy
from .row_geometry import RowGeometry
from .tensors import Tensors

# No GPU holds more: 148 SMs of 16 programs of 4 warps.
MOST_CLUSTERS = 4096


class ClusterLaunch:
    """A cluster kernel, whose grid follows from what the compiled kernel needs of an SM.

    In the interpreter, where a barrier would never end, the kernel's two halves run one after the
    other, each for all units.
    """

    def __init__(
        self, kernel: Any, geometry: Geometry | RowGeometry, constants: dict[str, Any]
    ) -> None:
        self.kernel, self.geometry, self.constants = kernel, geometry, constants
        self._launches: dict[int, tuple[int, list[Launch]]] = {}

    def clusters(self, tensors: Tensors, floats: tuple[float, ...]) -> int:
        """Clusters that a launch on the first tensor's device has; 0 where it cannot hold one.

        Of the tensors only device, dtypes and alignment matter. Those not aligned to 16 bytes would
        take another compiled kernel, of which it is not known how many fit: they get none.
        """
        x = tensors[0]
        assert x is not None
        device = x.get_device() if x.is_cuda else -1
        if x.is_cuda and any(t is not None and t.data_ptr() % 16 for t in tensors):
            return 0
        if device not in self._launches:
            self._launches[device] = self._plan(x, tensors, floats)
        return self._launches[device][0]

    def fits(self, tensors: Tensors, floats: tuple[float, ...]) -> bool:
        """Whether the device of the tensors holds at least one whole cluster at once."""
        return self.clusters(tensors, floats) > 0

    def __call__(self, tensors: Tensors, floats: tuple[float, ...] = ()) -> None:
        x = tensors[0]
        assert x is not None and self.fits(tensors, floats)
        for half in self._launches[x.get_device() if x.is_cuda else -1][1]:
            half(tensors, floats)

    def _plan(
        self, x: torch.Tensor, tensors: Tensors, floats: tuple[float, ...]
    ) -> tuple[int, list[Launch]]:
        """The clusters and launches for x's device; none where it cannot hold a cluster."""
        units = self.geometry.units
        if launch.INTERPRETED:
            return units, [self._launch(units, half) for half in (1, 2)]
        units = min(units, MOST_CLUSTERS)
        if not x.is_cuda:
            return units, [self._launch(units, 0)]
        with torch.cuda.device(x.device):
            handle = self._launch(1, 0).compile(tensors, floats)
        device = torch.cuda.get_device_properties(x.device)
        capability = device.major * 10 + device.minor
        if capability not in LIMITS:
            return 0, []
        on_one = occupancy(
            capability, handle.n_regs, handle.metadata.shared, self.geometry.num_warps
        )
        at_once = device.multi_processor_count * on_one.blocks
        clusters = min(units, at_once // self.geometry.members)
        return clusters, [self._launch(clusters, 0)] if clusters else []

    def _launch(self, clusters: int, half: int) -> Launch:
        geometry = self.geometry
        return Launch(
            self.kernel,
            clusters * geometry.members,
            geometry.scalars(clusters),
            {**self.constants, "CLUSTER": True, "HALF": half, **geometry.constants()},
            geometry.num_warps,
            128,  # 16 warps an SM: a cluster is the larger, the more programs share one
            cooperative=True,
        )
