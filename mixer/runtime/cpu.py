"""What holds on a CPU alone: how many processors there are, and three tricks that make training on them faster.

Each trick applies where JAX computes on a CPU and changes nothing elsewhere:

    keep_freed_memory   JAX_PLATFORMS=cpu and glibc   the memory of one step is kept for the next
    suited              a mesh of CPU devices         the gradient of a dense kernel is multiplied the faster way
    init_options        a mesh of CPU devices         the initialisation, which runs once, is compiled in less time

What each gains is in docs/lab/cpu.md.
"""

import ctypes
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1  # as a trim threshold


def processors() -> int:
    """Returns how many processors this process may use. JAX on a CPU and TensorFlow start as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, if JAX_PLATFORMS=cpu. Call it before JAX computes.

    XLA allocates the temporary memory of each step with malloc. By default, glibc returns blocks of that size to the
    kernel, which then clears and maps every page again in the next step. Only the first arena can grow to such sizes,
    so all threads share one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if os.environ.get("JAX_PLATFORMS") == "cpu" and mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)):
            mallopt(option, value)


def suited(model: Any, mesh: Mesh) -> Any:
    """Returns the model with the dense layers' products as they are fastest on the mesh's devices.

    On CPU devices this is `dense_dot`; on any other device, and for a model without such layers, it is the model.
    """
    return model.clone(dot_general=dense_dot) if hasattr(model, "dot_general") and _is_cpu(mesh) else model


def init_options(mesh: Mesh) -> dict[str, Any] | None:
    """Returns XLA's compiler options for the initialisation of a state.

    At level 1, LLVM takes a third less time for it. Level 1 keeps every bit of Ti/8's parameters; level 0 does not.
    """
    return {"xla_backend_optimization_level": 1} if _is_cpu(mesh) else None


def _is_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def dense_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """The product of `nn.Dense`, with the signature that its argument `dot_general` must have."""
    return _product(x, kernel)


@jax.custom_jvp
def _product(x: Float[Array, "*batch k"], kernel: Float[Array, "k n"]) -> Float[Array, "*batch n"]:
    """x @ kernel. Value and derivative are those of the plain product; see `_product_jvp`."""
    return jnp.matmul(x, kernel)


@_product.defjvp
def _product_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Value and tangent are unchanged. In the backward pass the kernel's gradient is computed as (g^T x)^T.

    JAX transposes this rule: the two transposes around the barrier become the order in which the gradient is
    multiplied. Without the barrier XLA simplifies (g^T x)^T to x^T g, for which it first copies the hidden layer in
    transposed order, or multiplies at a third of the speed.
    """
    (x, kernel), (dx, dkernel) = primals, tangents
    dkernel = jax.lax.optimization_barrier(dkernel.T).T
    return _product(x, kernel), _product(dx, kernel) + _product(x, dkernel)
