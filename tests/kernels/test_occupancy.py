"""How many blocks and warps fit a multiprocessor, at the edges of each limit."""

import pytest

from fastnorm.kernels.occupancy import occupancy


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "warps", "blocks"),
    [
        (80, 32, 0, 8, 8),  # all 64 warps
        (80, 33, 0, 8, 6),  # 40 registers: 51 warps, of which 48 lie evenly on the schedulers
        (80, 40, 0, 2, 24),
        (90, 128, 0, 4, 4),
        (90, 128, 0, 16, 1),
        (90, 255, 0, 8, 1),
        (90, 168, 0, 4, 3),  # 12 warps
        (90, 168, 0, 8, 1),  # 12 warps again, but 8 at a time
        (90, 16, 0, 1, 32),  # the most blocks
        (90, 16, 0, 32, 2),
        (80, 32, 163 * 1024, 4, 1),  # the most that a block may have
        (80, 32, 81 * 1024, 4, 2),  # 1 KiB more than asked for is taken: 2 * 82 = 164
        (80, 32, 81 * 1024 + 1, 4, 1),
        (90, 32, 227 * 1024, 4, 1),
        (90, 32, 45568, 4, 5),  # 5 * 364 * 128 of the 1824 * 128 bytes
        (90, 32, 45569, 4, 4),
        (100, 32, 75 * 1024, 4, 3),  # 3 * 76 = 228
        (100, 32, 228 * 1024, 4, 0),
    ],
)
def test_known_occupancies(capability, registers, shared, warps, blocks):
    assert occupancy(capability, registers, shared, warps) == (blocks, blocks * warps)
