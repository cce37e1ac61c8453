"""The compilation cache: programs that a run has compiled are kept in its folder."""

import os

import jax
from etils import epath


def keep_compiled(folder: epath.PathLike) -> None:
    """Makes JAX keep compiled programs in a folder, local or gs://, so that a restart compiles nothing.

    If JAX_COMPILATION_CACHE_DIR is set, that folder is used instead.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        path = epath.Path(folder)
        jax.config.update("jax_compilation_cache_dir", str(path if "://" in str(folder) else path.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
