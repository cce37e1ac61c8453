"""Peak FLOP/s of TPUs and GPUs, from their makers; the peak of a CPU is measured."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

_SIDE = 2048  # of the square matrices that measure a peak


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts devices: a core of TPU v2, v3 and 7x, a chip of TPU v4, v5e, v5p and v6e, or a GPU.

    Attributes:
      bfloat16: peak FLOP/s of dense matrix products.
      float32: the same for float32 arrays at JAX's default precision. At that precision TPUs round the factors to
        bfloat16, and NVIDIA's GPUs round them to TF32 (since Ampere).
    """

    bfloat16: float
    float32: float


def _tpu(tera_flops: float) -> Chip:
    return Chip(tera_flops * 1e12, tera_flops * 1e12)


def _gpu(bfloat16: float, float32: float) -> Chip:
    return Chip(bfloat16 * 1e12, float32 * 1e12)


# The key is JAX's device_kind; of a GPU, its first words, which a space or a hyphen follows. `find` takes the first key
# that fits, so H100 PCIe stands before H100.
# TPUs: the page "TPU vN" at cloud.google.com/tpu/docs. The pages give the numbers of a chip; those of v2, v3 and
# 7x (46, 123 and 2,307 TFLOP/s) have two cores, and the table has half. GPUs: NVIDIA's data sheets, for dense products:
# where a sheet gives a number with sparsity, the table has half.
CHIPS = {
    "TPU v2": _tpu(23),
    "TPU v3": _tpu(61.5),
    "TPU v4": _tpu(275),
    "TPU v5 lite": _tpu(197),
    "TPU v5e": _tpu(197),
    "TPU v5": _tpu(459),
    "TPU v5p": _tpu(459),
    "TPU v6 lite": _tpu(918),
    "TPU v6e": _tpu(918),
    "TPU7x": _tpu(1153.5),
    "Tesla V100S": _gpu(16.4, 16.4),  # V100 and T4 have no bfloat16: XLA multiplies it in float32
    "Tesla V100-PCIE": _gpu(14, 14),
    "Tesla V100": _gpu(15.7, 15.7),
    "NVIDIA V100": _gpu(15.7, 15.7),
    "Tesla T4": _gpu(8.1, 8.1),
    "NVIDIA A100": _gpu(312, 156),
    "NVIDIA L4": _gpu(121, 60),
    "NVIDIA L40": _gpu(181.05, 90.5),
    "NVIDIA L40S": _gpu(362.05, 183),
    "NVIDIA H100 PCIe": _gpu(756, 378),
    "NVIDIA H100 NVL": _gpu(835.5, 417.5),
    "NVIDIA H100": _gpu(989, 494),
    "NVIDIA H200 NVL": _gpu(835.5, 417.5),
    "NVIDIA H200": _gpu(989, 494),
    "NVIDIA B200": _gpu(2250, 1100),
}


def find(device_kind: str) -> Chip | None:
    """Returns the chip with this name, or None if the table does not have it; also for a part of a GPU (MIG)."""
    if device_kind in CHIPS or device_kind.startswith("TPU") or " MIG " in device_kind:
        return CHIPS.get(device_kind)
    return next((chip for name, chip in CHIPS.items() if re.match(f"{name}[ -]", device_kind)), None)


def measured_peak(dtype: jnp.dtype, products: int = 2, attempts: int = 5) -> float:
    """Measures the FLOP/s of a square matrix product on the first device. For devices that are not in the table.

    Args:
      dtype: of the matrices.
      products: how many products make one attempt.
      attempts: how many attempts; the fastest counts.
    """
    matrix = jnp.full((_SIDE, _SIDE), 1 / _SIDE, dtype)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        product: jax.Array = jax.lax.fori_loop(0, products, lambda _, y: y @ x, x)
        return product

    multiply(matrix).block_until_ready()  # compiles
    seconds = []
    for _ in range(attempts):
        since = time.perf_counter()
        multiply(matrix).block_until_ready()
        seconds.append(time.perf_counter() - since)
    return products * 2 * _SIDE**3 / min(seconds)
