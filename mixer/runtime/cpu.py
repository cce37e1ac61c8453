"""The number of processors, and three tricks that make training on a CPU faster.

Each trick applies where JAX computes on a CPU and changes nothing elsewhere:

    keep_freed_memory   JAX_PLATFORMS=cpu and glibc   a step reuses the memory of the step before
    suited              a mesh of CPU devices         the gradient of a dense kernel is multiplied in a faster order
    init_options        a mesh of CPU devices         the initialisation, which runs once, compiles in less time

docs/lab/cpu.md has the measured gains.
"""

import ctypes
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

_CGROUP = pathlib.Path("/sys/fs/cgroup")  # where a container sees its own limits

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1  # a trim threshold


def processors() -> int:
    """Returns how many processors this process may use: those that it may run on, or a container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, _quota()))


def _quota() -> float:
    """Returns the processors' time that a container may use, in processors; infinity if there is no limit."""
    for path in (_CGROUP / "cpu.max", _CGROUP / "cpu" / "cpu.cfs_quota_us"):  # of versions 2 and 1
        try:
            limit, *period = path.read_text().split()
            period = period or [(path.parent / "cpu.cfs_period_us").read_text()]
            if float(limit) > 0:  # version 1 says -1 for no limit, version 2 says "max"
                return float(limit) / float(period[0])
        except (OSError, ValueError):
            continue
    return math.inf


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, if JAX_PLATFORMS=cpu. Call it before JAX computes.

    XLA allocates the temporary memory of each step with malloc. By default, glibc returns large blocks to the operating
    system, which must clear and map every page again in the next step. Only glibc's main arena can grow to such sizes,
    so all threads share this one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if os.environ.get("JAX_PLATFORMS") == "cpu" and mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)):
            mallopt(option, value)


def suited(model: Any, mesh: Mesh) -> Any:
    """Returns the model with the fastest product of dense layers for the mesh's devices.

    On CPU devices this is `dense_dot`. On other devices, the model is returned as it is. So is a model without the
    attribute `dot_general`.
    """
    return model.clone(dot_general=dense_dot) if hasattr(model, "dot_general") and _is_cpu(mesh) else model


def init_options(mesh: Mesh) -> dict[str, Any] | None:
    """Returns XLA's compiler options for the initialisation of a state.

    LLVM's optimisation level 1 compiles it in a third less time. The parameters of Ti/8 keep every bit at level 1, but
    not at level 0.
    """
    return {"xla_backend_optimization_level": 1} if _is_cpu(mesh) else None


def _is_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def dense_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """Multiplies the last axis of x with the first of the kernel. It serves as `dot_general` of `nn.Dense`."""
    return _product(x, kernel)


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
