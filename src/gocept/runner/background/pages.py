"""Memory for large values, in large pages where Linux has some.

To touch 100 MB for the first time in pages of 4 KiB can take 100 ms, more than
to receive or to authenticate them. In pages of 2 MiB it takes 20 ms.
"""

import mmap
import sys

_ADVICE: int | None = (
    getattr(mmap, 'MADV_HUGEPAGE', None) if sys.maxsize > 2 ** 32 else None)

REGION = 2 ** 22
"""How many bytes a region has."""


def new_region() -> memoryview | None:
    """`REGION` bytes of memory, which goes back to the system when nobody
    refers to it any more. None if there are no large pages."""
    if _ADVICE is None:
        return None
    try:
        region = mmap.mmap(
            -1, REGION, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(_ADVICE)
    except OSError:  # a kernel without them, or no memory: as before
        return None
    return memoryview(region)


def is_region(view: object) -> bool:
    """Whether it is a part of a region."""
    return isinstance(view, memoryview) and isinstance(view.obj, mmap.mmap)


def advise(buffer: memoryview) -> None:
    """Have the system use large pages for a new object that has this buffer.

    That is only advice: where it is not taken, nothing happens.
    """
    if _ADVICE is None or len(buffer) < REGION:
        return
    import ctypes  # when it is needed: this takes milliseconds
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    end = start + len(buffer)
    start += -start % mmap.PAGESIZE
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(start),
        ctypes.c_size_t(end - start - end % mmap.PAGESIZE), _ADVICE)
