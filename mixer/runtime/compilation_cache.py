"""The compilation cache of a run: a restarted run finds its compiled programs in its folder."""

import os

import jax
from etils import epath

from mixer.runtime import bucket


def keep_compiled(folder: epath.PathLike) -> None:
    """Makes JAX keep all compiled programs in a folder, local or gs://.

    If the variable JAX_COMPILATION_CACHE_DIR is set, JAX uses that folder instead.
    """
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not own:
        jax.config.update("jax_compilation_cache_dir", bucket.absolute(folder))
        # By default JAX keeps only programs that took a second or more to compile. A run has many small ones too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if bucket.is_remote(own or folder):
        # XLA would keep what it finds out about a GPU's kernels in the same folder, and cannot write to gs://.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
