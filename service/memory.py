"""Has memory that is free go back to the system: large blocks at once, what lies between others now and then.

glibc learns from the first large picture to keep blocks of its size for later: after a few pictures of 30 million
pixels several hundred megabytes stay resident for ever. Above 8 MiB a block is mapped by itself instead; smaller ones,
such as photographs of usual sizes need and 32 pictures of 224x224 in one request, are kept as ever: to map 4.8 MB anew
for each such request takes a third of what it costs beside the model.

And it gives back only what is free at the end of its memory, of which each thread has its own: whatever was once needed
for a moment stays. A look through all of it takes a few milliseconds. It knows nothing of pictures.

Source: mallopt(3), malloc_trim(3).
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h


def return_large_blocks() -> bool:
    """Set it for this process; return whether its C library knows how."""
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 8 * 2**20) and mallopt(_TRIM_THRESHOLD, 16 * 2**20))


def return_what_is_free() -> None:
    """Look through the memory for pages that are free, and return them; does nothing where the C library cannot."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
