"""Keep the C library's allocator out of the timings."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MMAP_BYTES = 32 << 20  # the most that glibc accepts; every tensor of the cases is smaller
TRIM_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell malloc to keep what is freed; False where the C library has no such setting.

    Otherwise glibc now and then returns an 8 MB tensor to the system, and the next call pays 2,048
    page faults, longer than the norm itself: whether ours or torch's pays is a matter of luck.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
