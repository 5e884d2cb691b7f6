"""How many blocks of a kernel one multiprocessor holds at a time, by the limits of its GPU."""

from typing import NamedTuple


class Limits(NamedTuple):
    """One multiprocessor of a compute capability (CUDA C++ Programming Guide, appendix)."""

    warps: int
    blocks: int
    registers: int
    shared: int


# Shared memory in bytes; all three have 64 warps, 32 blocks and 64 Ki registers of 32 bits.
LIMITS = {
    80: Limits(64, 32, 65536, 164 * 1024),
    90: Limits(64, 32, 65536, 228 * 1024),
    100: Limits(64, 32, 65536, 228 * 1024),
}
SCHEDULERS = 4  # each has a quarter of the registers: the warps that fit are a multiple of 4
REGISTER_UNIT = 256  # registers are given to a warp in multiples of this
SHARED_UNIT = 128  # bytes of shared memory are given to a block in multiples of this
SHARED_RESERVED = 1024  # the system takes this much from every block


class Occupancy(NamedTuple):
    """Resident blocks and warps of one multiprocessor."""

    blocks: int
    warps: int


def occupancy(capability: int, registers: int, shared: int, warps: int) -> Occupancy:
    """Resident blocks of `warps` warps, `registers` a thread and `shared` bytes a block.

    0 blocks if not even one fits. Raises KeyError for an unknown compute capability.
    """
    limits = LIMITS[capability]
    warp_registers = _round_up(registers * 32, REGISTER_UNIT)
    register_warps = limits.registers // SCHEDULERS // warp_registers * SCHEDULERS
    block_shared = _round_up(shared + SHARED_RESERVED, SHARED_UNIT)
    blocks = min(
        limits.blocks,
        limits.warps // warps,
        register_warps // warps,
        limits.shared // block_shared,
    )
    return Occupancy(blocks, blocks * warps)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
