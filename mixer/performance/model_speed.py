"""Images per second and core of a model in inference and in training, as the paper measures them (Section 3).

In training, the program that is timed is the production step, from `setup.build`. A core is one JAX device. Every batch
is split over all devices, as in a run. `batch_size_search.py` finds the fastest batch size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixer import models
from mixer.config import checks, recipe
from mixer.performance import chips, compiling, timing
from mixer.runtime import cpu, devices, machine
from mixer.runtime.errors import UserError
from mixer.training import setup
from mixer.training.step import normalize

# FLOPs for each multiply-accumulate of the forward pass. The backward pass of a product is two more products.
FLOPS_PER_MAC = {"inference": 2, "train": 6}
MODES = tuple(FLOPS_PER_MAC)

_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
      image_size: in pixels.
      dtype: of activations and matrix products.
      blocks: how many timed blocks; their median counts.
      seconds: approximate length of a block.
    """

    image_size: int = 224
    dtype: str = "float32"
    blocks: int = 5
    seconds: float = 1.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The speed of one model in one mode at one batch size.

    Attributes:
      model: variant with its family, such as "Mixer-B/16".
      mode: one of MODES. "train" is the whole step: forward, backward, clipping, Adam.
      batch_size: images on each core.
      images_per_sec_per_core: median of the blocks.
      lowest: images_per_sec_per_core of the slowest block.
      highest: images_per_sec_per_core of the fastest block.
      compile_seconds: of the compilation, which the rates do not include.
      parameters: number of parameters, with a head of 1000 classes.
      gflop_per_image: by the formula: two FLOPs for each multiply-accumulate of a matrix product, six in training.
      compiler_gflop_per_image: by XLA, before it optimises: FLOPs of two images minus FLOPs of one. So it leaves out
        the work that does not depend on the batch size, which is mostly the optimizer's: 4% of BiT-R50x1's training
        at batch size 1. nan if `JAX_PLATFORMS` leaves out the CPU.
      utilisation: FLOP/s by the formula, divided by the peak; None where the peak is not known.
      peak_memory_bytes: on each core, as XLA plans it: arguments, results, temporaries and code.
      swept: images_per_sec_per_core by batch size, for all batch sizes tried.
    """

    model: str
    mode: str
    batch_size: int
    images_per_sec_per_core: float
    lowest: float
    highest: float
    compile_seconds: float
    parameters: int
    gflop_per_image: float
    compiler_gflop_per_image: float
    utilisation: float | None
    peak_memory_bytes: int
    swept: dict[int, float] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns all attributes, for JSON."""
        return dataclasses.asdict(self)


def peak(dtype: str) -> tuple[float | None, str]:
    """Returns the peak FLOP/s of a core, or None if it is not known; and where the number comes from, in words."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        whole = chips.measured_peak(jnp.dtype(dtype))
        return whole / jax.device_count(), f"a {dtype} matrix product measured in this run, {whole / 1e9:.0f} GFLOP/s"
    chip = chips.find(device.device_kind)
    if chip is None:
        return None, f"the peak of a {device.device_kind} is not in mixer/performance/chips.py"
    flops = getattr(chip, dtype)
    return flops, f"the peak of a {device.device_kind}, {flops / 1e12:.0f} TFLOP/s"


def measure(
    variant: str, mode: str, batch_size: int, *, settings: Settings, peak_flops: float | None, **widths: int
) -> Measurement:
    """Measures a model on JAX's devices.

    Args:
      variant: of the model.
      mode: one of MODES.
      batch_size: images on each core.
      settings: how to measure.
      peak_flops: of a core, for the utilisation; None if it is not known.
      **widths: settings of the model that replace the variant's, such as tokens_mlp_dim.

    Raises:
      DoesNotFitError: the program needs more memory than there is.
      UserError: the patches do not tile the image.
    """
    program = _program(variant, mode, batch_size, settings, devices.make_mesh(), **widths)
    compiled = program.compile()
    _check_host_memory(compiled.total)
    with compiling.memory_errors():
        timed = timing.timed(program.call(compiled), blocks=settings.blocks, seconds=settings.seconds)
    return _measurement(program, compiled, timed, peak_flops, xla_flops(variant, mode, settings, **widths))


def estimate(
    variant: str, mode: str, batch_size: int, *, settings: Settings, peak_flops: float | None, mesh: Mesh
) -> Measurement:
    """Returns the estimate of the compiler's cost model in place of a measurement. It is optimistic.

    Args:
      variant, mode, batch_size, settings, peak_flops: as for `measure`.
      mesh: of devices that need not exist, see `tpu_topology.mesh_of`.

    Raises:
      DoesNotFitError: the program needs more memory than a core has.
      UserError: the patches do not tile the image, or the compiler has no estimate for this kind of device.
    """
    program = _program(variant, mode, batch_size, settings, mesh)
    compiled = program.compile()
    seconds = compiled.estimated_seconds
    if seconds is None:
        kind = mesh.devices.flat[0].device_kind
        raise UserError(f"--topology: the compiler has no estimate of the time that {variant} takes on a {kind}")
    timed = timing.Timing(seconds, seconds, seconds)
    return _measurement(program, compiled, timed, peak_flops, xla_flops(variant, mode, settings))


def ready(variant: str, mode: str, batch_size: int, settings: Settings) -> Callable[[], Any]:
    """Compiles a model and puts its arguments on the devices. Returns a function that runs it once at each call."""
    program = _program(variant, mode, batch_size, settings, devices.make_mesh())
    return program.call(program.compile())


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is measured: the train step of a setup, or the forward pass of its model.

    Attributes:
      variant: of the model.
      mode: one of MODES.
      batch_size: images on each core.
      flops_per_image: by the formula.
      mesh: where it runs.
      built: the setup.
      batch: shapes and shardings of a batch.
    """

    variant: str
    mode: str
    batch_size: int
    flops_per_image: int
    mesh: Mesh
    built: setup.Setup
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower(self) -> Any:
        """Returns the program as XLA gets it, not compiled."""
        step, argument = self._step_and_argument()
        return step.lower(argument, self.batch)

    def compile(self) -> compiling.Compiled:
        """Compiles the program; raises DoesNotFitError if it needs more memory than a core has."""
        step, argument = self._step_and_argument()
        return compiling.compile_step(step, argument, self.batch)

    def call(self, compiled: compiling.Compiled) -> Callable[[], Any]:
        """Makes the program's arguments on the devices. Returns a function that runs the program once at each call."""
        batch = _random_batch(self.batch)
        if self.mode == "inference":
            params = self.built.init().params
            return lambda: compiled.run(params, batch)

        state = self.built.init()

        def train() -> Any:
            nonlocal state  # the step donates its state, so each call must use the state that the last call returned
            state, metrics = compiled.run(state, batch)
            return metrics

        return train

    def _step_and_argument(self) -> tuple[Any, Any]:
        """Returns the jitted function from (argument, batch), and the shapes and shardings of the argument."""
        if self.mode == "train":
            return self.built.train_step, self.built.abstract_state
        model = self.built.model
        forward = jax.jit(
            lambda params, batch: model.apply({"params": params}, normalize(batch["image"])),
            compiler_options=cpu.options(model, self.mesh),
        )
        return forward, self.built.abstract_state.params


def _program(variant: str, mode: str, batch_size: int, settings: Settings, mesh: Mesh, **widths: int) -> _Program:
    config = recipe.base()
    config.model.update({"variant": variant, "dtype": settings.dtype, **widths})
    config.input.image_size, config.batch_size = settings.image_size, batch_size * mesh.size
    built = setup.build(checks.checked(config), mesh, num_classes=_CLASSES)
    flops_per_image = FLOPS_PER_MAC[mode] * built.model.forward_macs(settings.image_size)
    batch = setup.batch_shapes(config, mesh, max_labels=1)
    return _Program(variant, mode, batch_size, flops_per_image, mesh, built, batch)


def _measurement(
    program: _Program, compiled: compiling.Compiled, timed: timing.Timing, peak_flops: float | None, by_xla: float
) -> Measurement:
    rate = program.batch_size / timed.median
    return Measurement(
        model=models.name_of(program.built.model),
        mode=program.mode,
        batch_size=program.batch_size,
        images_per_sec_per_core=rate,
        lowest=program.batch_size / timed.most,
        highest=program.batch_size / timed.least,
        compile_seconds=compiled.compile_seconds,
        parameters=models.num_parameters(program.built.shapes.params),
        gflop_per_image=program.flops_per_image / 1e9,
        compiler_gflop_per_image=by_xla / 1e9,
        utilisation=None if peak_flops is None else rate * program.flops_per_image / peak_flops,
        peak_memory_bytes=compiled.total,
    )


@functools.cache
def xla_flops(variant: str, mode: str, settings: Settings, **widths: int) -> float:
    """Returns XLA's FLOPs for two images minus those for one; nan if `JAX_PLATFORMS` leaves out the CPU.

    The programs are lowered for the CPU and not compiled: before a compilation, JAX counts there alone.
    """
    try:
        mesh = devices.make_mesh(jax.devices("cpu")[:1])
    except RuntimeError:
        return math.nan
    one, two = (
        _program(variant, mode, batch_size, settings, mesh, **widths).lower().cost_analysis()["flops"]
        for batch_size in (1, 2)
    )
    return float(two - one)


def _random_batch(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Makes a batch of noise on the devices. All labels are valid and all weights are one."""
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
        "labels": rng.integers(0, _CLASSES, shapes["labels"].shape, np.int32),
        "weight": np.ones(shapes["weight"].shape, np.float32),
        "status": np.zeros(shapes["status"].shape, np.int32),
    }
    return {name: jax.device_put(value, shapes[name].sharding) for name, value in values.items()}


def _check_host_memory(needed: int) -> None:
    """Checks that a program fits in a CPU's available memory. Otherwise the machine would swap or kill processes.

    Args:
      needed: bytes on each device. All devices share the memory.

    Raises:
      DoesNotFitError: the program does not fit.
    """
    if jax.devices()[0].platform != "cpu":
        return
    available = machine.available_memory()
    if available is not None and needed * jax.device_count() > available:
        words = f"it needs {needed / 2**30:.1f} GiB on each of {jax.device_count()} device(s), and "
        raise compiling.DoesNotFitError(needed, f"{words}{available / 2**30:.1f} GiB are available")
