"""Images per second and core of a model: the paper's measurement (Section 3), in inference and in training.

The batch size is swept and the best kept. A core is a device of JAX's; the batch lies on all of them, as in training.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mixer import models
from mixer.config import checks, recipe
from mixer.performance import chips, compiling, timing
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import setup
from mixer.training.step import normalize

MODES = ("inference", "train")

_CLASSES = 1000
_WORTH = 1.01  # a larger batch counts as better only by so much
_LARGEST = 8192


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
      image_size: pixels.
      dtype: of activations and matrix products.
      blocks: timed blocks, of which the median counts.
      seconds: of a block, about.
    """

    image_size: int = 224
    dtype: str = "float32"
    blocks: int = 5
    seconds: float = 1.0


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of one model in one mode.

    Attributes:
      model: variant, such as "Mixer-B/16".
      mode: one of MODES; "train" is the whole step: forward, backward, clipping, Adam.
      batch_size: on each core.
      images_per_sec_per_core: the median of the blocks; lowest and highest: of the slowest and the fastest block.
      compile_seconds: of compiling, not part of the above.
      parameters: how many, with a head of 1000 classes.
      gflop_per_image: from the formula: two for each multiply-accumulate of a matrix product, in training six.
      compiler_gflop_per_image: what XLA counts for each further image, before it optimises. What does not grow with the
        batch, mostly the optimizer's work, is left out: 4% of BiT-R50x1's training at batch size 1.
      utilisation: the formula's FLOP/s over the peak, 0 to 1; None where the peak is not known.
      peak_memory_bytes: on each core, by XLA's plan: arguments, results, temporaries and code.
      swept: images/sec/core at every batch size tried.
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
        """For JSON."""
        return dataclasses.asdict(self)


def peak(dtype: str) -> tuple[float | None, str]:
    """The peak of a core in FLOP/s, None if it is not known, and where it is from."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        whole = chips.measured_peak(jnp.dtype(dtype))
        return whole / jax.device_count(), f"a {dtype} matrix product measured in this run, {whole / 1e9:.0f} GFLOP/s"
    chip = chips.find(device.device_kind)
    if chip is None:
        return None, f"the peak of a {device.device_kind} is not in mixer/performance/chips.py"
    flops = getattr(chip, dtype)
    return flops, f"the peak of a {device.device_kind}, {flops / 1e12:.0f} TFLOP/s"


def best(
    variant: str,
    mode: str,
    batch_sizes: Iterable[int] | None,
    one: Callable[[str, str, int], Row],
    smallest: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Row:
    """Takes a model's row at each batch size and keeps the fastest.

    Args:
      variant: of the model.
      mode: one of MODES.
      batch_sizes: on each core; None doubles it for as long as that helps.
      one: from these three to the row: `measure` or `estimate`, with the rest of their arguments given.
      smallest: where doubling begins.
      tell: called with a line for each.

    Raises:
      UserError: not even the first batch fits, or the model and the image do not.
    """
    found: list[Row] = []
    for batch_size in batch_sizes or _doubling(found, smallest):
        try:
            row = one(variant, mode, batch_size)
        except compiling.DoesNotFitError as error:
            tell(f"{variant} {mode} at {batch_size}: {error}")
            break
        tell(f"{variant} {mode} at {batch_size}: {row.images_per_sec_per_core:.4g} images/sec/core")
        found.append(row)
    if not found:
        raise UserError(f"{variant}, {mode}, {batch_size} images on a core: more memory is needed than there is")
    fastest = max(found, key=lambda row: row.images_per_sec_per_core)
    swept = {row.batch_size: row.images_per_sec_per_core for row in found}
    return dataclasses.replace(fastest, swept=swept)


def _doubling(found: list[Row], batch_size: int) -> Iterator[int]:
    """Each twice the one before, until two in a row did not help."""
    while batch_size <= _LARGEST:
        yield batch_size
        rates = [row.images_per_sec_per_core for row in found]
        if len(rates) > 2 and max(rates[-2:]) < _WORTH * max(rates[:-2]):
            return
        batch_size *= 2


def measure(
    variant: str, mode: str, batch_size: int, *, settings: Settings, peak_flops: float | None, **widths: int
) -> Row:
    """Measures a model on JAX's devices; `widths` replace the variant's.

    Raises:
      compiling.DoesNotFitError: it does not fit.
      UserError: the model's patches do not divide the image.
    """
    case = _case(variant, mode, batch_size, settings, devices.make_mesh(), widths)
    compiled = compiling.compile_step(case.step, case.carried, case.batch)
    _check_host_memory(compiled.total)
    with compiling.out_of_memory():
        timed = timing.timed(_runs(case, compiled), blocks=settings.blocks, seconds=settings.seconds)
    return _row(case, compiled, settings, timed, peak_flops, **widths)


def ready(variant: str, mode: str, batch_size: int, settings: Settings) -> Callable[[], Any]:
    """Compiles a model and makes what it needs: a function of which each call runs it once and returns arrays."""
    case = _case(variant, mode, batch_size, settings, devices.make_mesh(), {})
    return _runs(case, compiling.compile_step(case.step, case.carried, case.batch))


def estimate(
    variant: str, mode: str, batch_size: int, *, settings: Settings, peak_flops: float | None, mesh: Mesh
) -> Row:
    """What the compiler's cost model says for devices that need not be there (`slices.topology`): it is optimistic.

    Raises:
      compiling.DoesNotFitError: it does not fit.
      UserError: the model's patches do not divide the image.
    """
    case = _case(variant, mode, batch_size, settings, mesh, {})
    compiled = compiling.compile_step(case.step, case.carried, case.batch)
    seconds = compiled.estimated_seconds
    if seconds is None:
        kind = mesh.devices.flat[0].device_kind
        raise UserError(f"--topology: the compiler estimates no time for a {kind}; it does for v2, v3 and v5p")
    return _row(case, compiled, settings, timing.Timing(seconds, seconds, seconds), peak_flops)


class _Case(NamedTuple):
    """What is to be measured: the step from (carried, batch), these by their shapes and shardings."""

    variant: str
    mode: str
    batch_size: int
    built: setup.Setup
    step: Any
    carried: Any
    batch: dict[str, jax.ShapeDtypeStruct]


def _case(variant: str, mode: str, batch_size: int, settings: Settings, mesh: Mesh, widths: dict[str, int]) -> _Case:
    config = recipe.base()
    config.model.update({"variant": variant, "dtype": settings.dtype, **widths})
    config.input.image_size, config.batch_size = settings.image_size, batch_size * mesh.size
    built = setup.build(checks.checked(config), mesh, num_classes=_CLASSES)
    step, carried = step_of(built, mode)
    return _Case(variant, mode, batch_size, built, step, carried, setup.batch_shapes(config, mesh, max_labels=1))


def step_of(built: setup.Setup, mode: str) -> tuple[Any, Any]:
    """The jitted function that a mode measures, from (carried, batch), and the shapes of what it carries."""
    if mode == "train":
        return built.train_step, built.state
    forward = jax.jit(lambda params, batch: built.model.apply({"params": params}, normalize(batch["image"])))
    return forward, built.state.params


def _runs(case: _Case, compiled: compiling.Compiled) -> Callable[[], Any]:
    """Makes what the program needs, on the devices; each call of the function returned runs it once."""
    built, batch = case.built, _random_batch(case.batch)
    if case.mode == "train":
        held = [built.init()]  # the step gives the state before it away

        def call() -> Any:
            held[0], metrics = compiled.run(held[0], batch)
            return metrics

        return call
    params = built.init().params
    return lambda: compiled.run(params, batch)


def _row(
    case: _Case, compiled: compiling.Compiled, settings: Settings, timed: timing.Timing, peak_flops: float | None,
    **widths: int,
) -> Row:  # fmt: skip
    flops = (6 if case.mode == "train" else 2) * case.built.model.forward_macs(settings.image_size)
    rate = case.batch_size / timed.median
    return Row(
        model=models.full_name(case.variant),
        mode=case.mode,
        batch_size=case.batch_size,
        images_per_sec_per_core=rate,
        lowest=case.batch_size / timed.most,
        highest=case.batch_size / timed.least,
        compile_seconds=compiled.compile_seconds,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(case.built.shapes.params)),
        gflop_per_image=flops / 1e9,
        compiler_gflop_per_image=xla_flops(case.variant, case.mode, settings, **widths) / 1e9,
        utilisation=None if peak_flops is None else rate * flops / peak_flops,
        peak_memory_bytes=compiled.total,
    )


@functools.cache
def xla_flops(variant: str, mode: str, settings: Settings, **widths: int) -> float:
    """What XLA counts for each further image: two images' FLOPs less one's. Nothing is compiled."""
    mesh = devices.make_mesh(jax.devices()[:1])
    one, two = (
        case.step.lower(case.carried, case.batch).cost_analysis()["flops"]
        for case in (_case(variant, mode, batch_size, settings, mesh, widths) for batch_size in (1, 2))
    )
    return two - one


def _random_batch(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A batch of noise, all labels in range and all weights one, as it lies in training."""
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
        "labels": rng.integers(0, _CLASSES, shapes["labels"].shape, np.int32),
        "weight": np.ones(shapes["weight"].shape, np.float32),
        "status": np.zeros(shapes["status"].shape, np.int32),
    }
    return {name: jax.device_put(value, shapes[name].sharding) for name, value in values.items()}


def _check_host_memory(needed: int) -> None:
    """On a CPU a program that does not fit would take the machine down rather than fail."""
    if jax.devices()[0].platform != "cpu" or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed * jax.device_count() > free:
        words = f"it needs {needed / 2**30:.1f} GiB on each of {jax.device_count()} device(s), and "
        raise compiling.DoesNotFitError(needed, f"{words}{free / 2**30:.1f} GiB are free")
