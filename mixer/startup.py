"""What a command sets up before it computes: memory that steps leave to each other, and programs kept on the disk."""

import ctypes
import os

import jax
from etils import epath

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1  # to be trimmed


def keep_freed_memory() -> None:
    """Where JAX_PLATFORMS=cpu has glibc keep what is freed, elsewhere does nothing; to be called before JAX computes.

    XLA takes the temporary memory of each step from malloc, which by itself gets blocks of that size from the kernel
    and gives them back: every page is cleared and mapped anew in every step (docs/performance.md has what that costs).
    Arenas beside the first cannot grow so large, hence one for all threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if os.environ.get("JAX_PLATFORMS") == "cpu" and mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)):
            mallopt(option, value)


def keep_compiled(folder: epath.PathLike) -> None:
    """Keeps what JAX compiles in a folder, local or gs://, so that a restart compiles nothing.

    The folder that JAX_COMPILATION_CACHE_DIR names is kept to instead.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        path = epath.Path(folder)
        jax.config.update("jax_compilation_cache_dir", str(path if "://" in str(folder) else path.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
