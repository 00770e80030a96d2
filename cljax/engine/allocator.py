"""Memory that a process keeps: on Linux, freed blocks are not handed back to the kernel.

XLA takes the temporaries of each update from the C library, which by default maps large blocks
anew and unmaps them again; the kernel then zeroes every page of them at every update. For a step
of ResNet-8 on 128 images that was a quarter of the processor's time (16 000 page faults).

A block above 64 MB stays only where all threads share one arena (M_ARENA_MAX): for a step of
ResNet-32 on 128 images that is a seventh of the processor's time. Two lanes of small networks are
two and a half times slower with it, for what the compiler leaves in the arena; so it is asked for.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h: its name for an option, and a value that keeps what is freed.
_OPTIONS = {
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 2**28),
    "M_MMAP_THRESHOLD": (-3, 2**31 - 1),
}
_ONE_ARENA = {"M_ARENA_MAX": (-8, 1)}


def keep_freed_memory(*, large: bool = False) -> bool:
    """Lets this process keep the memory that it frees, for programs that need it again at once.

    The command line does so by itself; a script of your own may, before its first computation. The
    process then keeps its largest size until it ends. Costs nothing where updates are small.

    Args:
      large: also blocks above 64 MB, as the activations of a residual network on a hundred images
        are; for networks that convolve, before JAX has started its threads.

    Returns:
      Whether the C library took it (glibc's does; others have nothing of the kind).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    options = _OPTIONS | (_ONE_ARENA if large else {})
    return all(library.mallopt(option, value) for option, value in options.values())
