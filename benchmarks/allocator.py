"""Keeps the cost of the C library's allocator out of the timings."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MMAP_BYTES = 32 << 20  # the most that glibc accepts
TRIM_BYTES = 2**31 - 1
BLOCKS = 16  # of that size: the heap grows by this at once, so larger tensors fit too


def keep_freed_memory() -> bool:
    """Tell malloc to keep freed memory; False if the C library has no such setting.

    Otherwise glibc now and then returns an 8 MB tensor to the system. The next call then pays 2,048
    page faults, longer than the norm itself, and luck decides whether that is ours or torch's.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc, free = libc.mallopt, libc.malloc, libc.free
    except (AttributeError, OSError, TypeError):
        return False
    if not (mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)):
        return False
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    for block in [malloc(MMAP_BYTES - 4096) for _ in range(BLOCKS)]:
        free(block)
    return True
