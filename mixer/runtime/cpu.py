"""What makes training on a CPU faster.

Each trick applies where JAX computes on a CPU and changes nothing elsewhere:

    keep_freed_memory   no other device, and glibc    a step reuses the memory of the step before
    dtype               a mesh of CPU devices         model.dtype=auto is bfloat16 only where it is faster; GPUs too
    suited              a mesh of CPU devices         dense layers and the stem multiply in a faster order; in bfloat16,
                                                      bias and GELU are float32, which XLA computes three times as fast
    options             a mesh of CPU devices         bfloat16 programs use vectors of 512 bits
    init_options        a mesh of CPU devices         the initialisation, which runs once, compiles in less time

docs/lab/cpu.md has the measured gains.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_USES_BFLOAT16 = (0, 12)  # the JAX that multiplies bfloat16 in half the time of float32, where the processor can

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1  # a trim threshold


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, if JAX computes on the CPU. Call it before JAX starts.

    XLA allocates the temporary memory of each step with malloc. By default, glibc returns large blocks to the operating
    system, which must clear and map every page again in the next step. Only glibc's main arena can grow to such sizes,
    so all threads share this one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and _is_only_device():
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)):
            mallopt(option, value)


def _is_only_device() -> bool:
    """Returns whether JAX, which has not started yet, will find the CPU alone: it is told so, or lacks other libraries.

    Where a GPU's library is installed and no GPU is there, the answer is no.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    of_tpu = "TPU_LIBRARY_PATH" in os.environ or importlib.util.find_spec("libtpu") is not None
    of_others = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
    return not (of_tpu or of_others)


def dtype(setting: str, mesh: Mesh) -> str:
    """Returns the type of activations that a setting of `model.dtype` means: itself, or what is fastest for "auto".

    That is bfloat16, except on CPU devices without instructions for it, or with a JAX that does not use them, and on
    NVIDIA's GPUs before Ampere (compute capability 8.0), which have no units for it: products then take as long as in
    float32, and all else longer.
    """
    if setting != "auto":
        return setting
    if _is_cpu(mesh):
        faster = _multiplies_bfloat16()
    else:
        capability = getattr(mesh.devices.flat[0], "compute_capability", None)  # "7.5" of a T4; other makers': "gfx942"
        faster = not re.fullmatch(r"[1-7]\.\d", str(capability))
    return "bfloat16" if faster else "float32"


def _multiplies_bfloat16() -> bool:
    """Returns whether a bfloat16 product takes less time than a float32 one.

    On an AMD, AVX512_BF16 doubles the rate. On an Intel without AMX, Intel's units for bfloat16, it lowers it.
    """
    try:
        words = set(_CPUINFO.read_text().split())
    except OSError:  # macOS
        return False
    faster = "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
    return faster and jax.__version_info__ >= _USES_BFLOAT16


def suited(model: Any, mesh: Mesh) -> Any:
    """Returns the model with the fastest products for the mesh's devices.

    On CPU devices these are `dense_dot`, or `rounded_dot` for bfloat16. On other devices, the model is returned as it
    is. So is a model without the attribute `dot_general`.
    """
    if not (hasattr(model, "dot_general") and _is_cpu(mesh)):
        return model
    return model.clone(dot_general=rounded_dot if jnp.dtype(model.dtype) == jnp.bfloat16 else dense_dot)


def options(model: Any, mesh: Mesh) -> dict[str, Any] | None:
    """Returns XLA's compiler options for a model's steps."""
    in_bfloat16 = jnp.dtype(getattr(model, "dtype", jnp.float32)) == jnp.bfloat16
    return {"xla_cpu_prefer_vector_width": 512} if _is_cpu(mesh) and in_bfloat16 else None


def init_options(mesh: Mesh) -> dict[str, Any] | None:
    """Returns XLA's compiler options for the initialisation of a state.

    LLVM's optimisation level 1 compiles it in a third less time. The parameters of Ti/8 keep every bit at level 1, but
    not at level 0.
    """
    return {"xla_backend_optimization_level": 1} if _is_cpu(mesh) else None


def _is_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def dense_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """Multiplies the last axis of x with the first of the kernel. It serves as `dot_general` of `layers.MlpBlock`."""
    return _product(x, kernel)


def rounded_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """Does the same in bfloat16, with factors and product rounded to it, between float32 arrays.

    So what follows, bias and GELU, is float32, and so is the sum that is the bias' gradient. In bfloat16, XLA rounds
    after each of their operations, which takes a CPU longer than the product itself.
    """
    return _product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).astype(jnp.float32)


@jax.custom_jvp
def _product(x: Float[Array, "*batch k"], kernel: Float[Array, "k n"]) -> Float[Array, "*batch n"]:
    """Returns x @ kernel."""
    return jnp.matmul(x, kernel)


@_product.defjvp
def _product_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns x @ kernel and its tangent. In the backward pass, the kernel's gradient is computed as (g^T x)^T.

    JAX derives the backward pass by transposing this rule, and so the two transposes around the barrier set the order
    of the product. Without the barrier, XLA simplifies (g^T x)^T to x^T g. For that product it first copies x, the
    hidden layer, in transposed order, or it multiplies at a third of the speed.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    dkernel = jax.lax.optimization_barrier(dkernel.T).T
    return _product(x, kernel), _product(dx, kernel) + _product(x, dkernel)
