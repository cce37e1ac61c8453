"""What a chip can do at most: the peak that utilisation is measured against, and the memory that programs fit in."""

import dataclasses
import time

import jax
import jax.numpy as jnp

_PRODUCT = 2048  # rows and columns of the product that a CPU is measured by


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of device as JAX counts them: a TPU core of v2, v3 and v5e, a chip of v4, v5p and v6e, a GPU.

    Attributes:
      bfloat16: peak of dense matrix products, FLOP/s.
      float32: the same for float32 arrays at JAX's default precision: TPUs round them to bfloat16, NVIDIA's GPUs since
        Ampere to TF32.
      memory: bytes.
    """

    bfloat16: float
    float32: float
    memory: float


def _tpu(tera_flops: float, gib: float) -> Chip:
    return Chip(tera_flops * 1e12, tera_flops * 1e12, gib * 2**30)


def _gpu(bfloat16: float, float32: float, gb: float) -> Chip:
    return Chip(bfloat16 * 1e12, float32 * 1e12, gb * 1e9)


# By what JAX's device_kind begins with; a longer name stands before a shorter. TPUs: cloud.google.com/tpu/docs, the
# page "TPU vN" of each (v2 and v3 give a chip's 46 and 123 TFLOP/s and 16 and 32 GiB; it has two cores). GPUs: NVIDIA's
# data sheets, dense.
CHIPS = {
    "TPU v2": _tpu(23, 8),
    "TPU v3": _tpu(61.5, 16),
    "TPU v4": _tpu(275, 32),
    "TPU v5 lite": _tpu(197, 16),
    "TPU v5": _tpu(459, 95),
    "TPU v6 lite": _tpu(918, 32),
    "NVIDIA V100": _gpu(125, 15.7, 16),  # its 125 are float16's; it has no bfloat16
    "Tesla V100": _gpu(125, 15.7, 16),
    "Tesla T4": _gpu(65, 8.1, 16),  # float16's
    "NVIDIA A100-SXM4-80GB": _gpu(312, 156, 80),
    "NVIDIA A100 80GB": _gpu(312, 156, 80),
    "NVIDIA A100": _gpu(312, 156, 40),
    "NVIDIA L4": _gpu(121, 60, 24),
    "NVIDIA H100 PCIe": _gpu(756, 378, 80),
    "NVIDIA H100": _gpu(989, 494, 80),
    "NVIDIA H200": _gpu(989, 494, 141),
    "NVIDIA B200": _gpu(2250, 1100, 180),
}


def find(device_kind: str) -> Chip | None:
    """The chip of this name, if the table has it."""
    return next((chip for name, chip in CHIPS.items() if device_kind.startswith(name)), None)


def measured_peak(dtype: jnp.dtype, products: int = 2, attempts: int = 5) -> float:
    """FLOP/s of a square matrix product on the first device, the best of some attempts: for devices in no table."""
    matrix = jnp.full((_PRODUCT, _PRODUCT), 1 / _PRODUCT, dtype)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, y: y @ x, x)

    multiply(matrix).block_until_ready()
    seconds = []
    for _ in range(attempts):
        since = time.perf_counter()
        multiply(matrix).block_until_ready()
        seconds.append(time.perf_counter() - since)
    return products * 2 * _PRODUCT**3 / min(seconds)
