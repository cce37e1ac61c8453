"""TPU slices that this machine does not have, and a config's steps compiled for them. libtpu needs no TPU for that."""

import importlib.metadata
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from mixer.config import checks
from mixer.evaluation import accuracy, evaluator
from mixer.performance import chips, compiling
from mixer.runtime import devices
from mixer.runtime.errors import UserError, first_line
from mixer.training import setup

# From the name of a generation in --topology to its key in `chips.CHIPS`, which is what JAX calls these devices.
KINDS = {
    "v2": "TPU v2", "v3": "TPU v3", "v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}  # fmt: skip

# A host of v4 shows the two cores of a chip as one device. libtpu describes them as two unless it is told.
_CHIP_CONFIGS = {"v4": {"chip_config_name": "megacore"}}

# Slices whose one host has another number of chips than libtpu takes for granted, which is four.
_HOSTS = {
    f"{kind}:{shape}": {"chips_per_host_bounds": (*map(int, shape.split("x")), 1)}
    for kind in ("v5e", "v6e")
    for shape in ("1x1", "2x4")
}

_MISSING = "libtpu is missing: run make install-preflight in a clone, and use .venv-preflight/bin/python"

# These variables keep libtpu from searching for a TPU, waiting for it and logging errors. Variables that are already
# set, as on a machine with a TPU, keep their values.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v3-8",
}  # fmt: skip


def mesh_of(spec: str) -> Mesh:
    """Makes the mesh of a slice, which is given as v3:8x8 or v4:4x4x4.

    Raises:
      UserError: there is no such slice, or libtpu is not installed.
    """
    kind, _, shape = spec.partition(":")
    if kind not in KINDS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise UserError(
            f"--topology={spec}: expected one of {', '.join(KINDS)}, a colon and the chips along each side, such as "
            "v3:8x8 (128 cores), v4:4x4x4 (64 cores) or v5e:4x8"
        )
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    try:
        options = _CHIP_CONFIGS.get(kind, {}) | _HOSTS.get(spec, {})
        described = topologies.get_topology_desc(platform="tpu", topology_name=spec, **options)
    except Exception as error:  # jaxlib and libtpu raise errors of several types
        reason = first_line(error)
        if "TPU support not installed" in reason:
            reason = _MISSING
        raise UserError(f"--topology={spec}: {reason}") from None
    return devices.make_mesh(list(described.devices))


def chip_of(spec: str) -> chips.Chip:
    """Returns the chip of a slice that `mesh_of` accepts."""
    return chips.CHIPS[KINDS[spec.partition(":")[0]]]


def memory_of(mesh: Mesh) -> float:
    """Returns the bytes of a core that a program may use, from the compiler's own message.

    The compiler says it of a program that is far too large. It is less than the chip has: 15.48 of 16 GiB for a v3.

    Raises:
      UserError: the compiler says nothing of the kind.
    """
    alone = SingleDeviceSharding(mesh.devices.flat[0])
    too_large = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32, sharding=alone)  # 4 TiB
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if available := re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error)):
            return float(available[1]) * 2**30
        raise UserError(f"--topology: how much memory does a core have? {first_line(error)}") from None
    raise UserError("--topology: the compiler does not say how much memory a core has")


def libtpu_version() -> str:
    """Returns the version of libtpu, or which library it is: a file that TPU_LIBRARY_PATH names does not tell its own.

    JAX takes that file rather than the package's. When it is imported and the variable is not set, the package sets it
    to its own file.

    Raises:
      UserError: libtpu is not installed.
    """
    given = os.environ.get("TPU_LIBRARY_PATH", "")
    try:
        package = importlib.metadata.distribution("libtpu")
    except importlib.metadata.PackageNotFoundError:
        package = None
    if os.path.isfile(given) and not (package and _same_file(given, str(package.locate_file("libtpu/libtpu.so")))):
        return "of TPU_LIBRARY_PATH"
    if package is None:
        raise UserError(_MISSING)
    return package.version


def _same_file(first: str, second: str) -> bool:
    return os.path.isfile(first) and os.path.isfile(second) and os.path.samefile(first, second)


def num_hosts(mesh: Mesh) -> int:
    """Returns the number of hosts of a slice. Each host runs one process."""
    return len({device.process_index for device in mesh.devices.flat})


def compile_train(
    config: ml_collections.ConfigDict, mesh: Mesh, num_classes: int, max_labels: int
) -> compiling.Compiled:
    """Compiles the training step of a checked config: the one that `setup.build` returns.

    Beside it the next batches are on a core.

    Args:
      config: of the run.
      mesh: of the slice.
      num_classes: width of the head.
      max_labels: labels of an example, at most.

    Raises:
      DoesNotFitError: the step needs more memory than a core has.
    """
    built = setup.build(config, mesh, num_classes=num_classes)
    batch = setup.batch_shapes(config, mesh, max_labels)
    ahead = devices.BATCHES_AHEAD * bytes_on_a_core(batch)
    return compiling.compile_step(built.train_step, built.abstract_state, batch, beside=ahead)


def compile_eval(
    config: ml_collections.ConfigDict, mesh: Mesh, num_classes: int, max_labels: int
) -> compiling.Compiled:
    """Compiles the evaluation step of a checked config. Arguments and errors are those of `compile_train`.

    Beside it the rest of the training state is on a core, the last and the next training batch, and the next batch of
    the evaluation.
    """
    built = setup.build(config, mesh, num_classes=num_classes)
    step = accuracy.make_eval_step(built.model, config.loss, mesh, keep_logits=max_labels > 1)
    evaluated = checks.unlocked_copy(config)
    evaluated.batch_size = evaluator.batch_size(config)
    batch, params = setup.batch_shapes(evaluated, mesh, max_labels), built.abstract_state.params
    stays = bytes_on_a_core(built.abstract_state) - bytes_on_a_core(params)
    stays += devices.BATCHES_AHEAD * bytes_on_a_core(setup.batch_shapes(config, mesh, max_labels))
    return compiling.compile_step(step, params, batch, beside=stays + bytes_on_a_core(batch))


def bytes_on_a_core(tree: Any) -> int:
    """Returns the bytes that a tree of arrays takes on one core. Its leaves are shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
