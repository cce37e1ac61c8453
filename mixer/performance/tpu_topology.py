"""TPU slices that are not there, and a config's real programs compiled for them (libtpu needs no TPU for it)."""

import math
import os
import re
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies
from jax.sharding import Mesh

from mixer.evaluation import accuracy
from mixer.performance import compiling
from mixer.runtime import devices
from mixer.runtime.errors import UserError, first_line
from mixer.training import setup

# What `topology` takes, and how JAX calls these devices: the key of `chips.CHIPS`.
KINDS = {
    "v2": "TPU v2", "v3": "TPU v3", "v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite",
}  # fmt: skip


# So that libtpu does not look for a machine's TPU, wait for it, and complain; its real TPU's values, if any, stand.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v3-8",
}  # fmt: skip


def mesh_of(spec: str) -> Mesh:
    """The mesh of a slice such as v3:8x8, or v4:4x4x4.

    Raises:
      UserError: there is no such slice, or libtpu is missing.
    """
    kind, _, shape = spec.partition(":")
    if kind not in KINDS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise UserError(
            f"--topology={spec}: expected one of {', '.join(KINDS)}, a colon and the chips along each side, such as "
            "v3:8x8 (128 cores), v4:4x4x4 or v5e:4x8"
        )
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=spec)
    except Exception as error:  # jaxlib and libtpu raise whatever they like
        reason = first_line(error)
        if "TPU support not installed" in reason:
            reason = "libtpu is missing: pip install 'mixer[preflight]', in an environment of its own"
        raise UserError(f"--topology={spec}: {reason}") from None
    return devices.make_mesh(list(described.devices))


def hosts(mesh: Mesh) -> int:
    """How many hosts, and so processes, the slice has."""
    return len({device.process_index for device in mesh.devices.flat})


def compile_train(
    config: ml_collections.ConfigDict, mesh: Mesh, num_classes: int, max_labels: int
) -> compiling.Compiled:
    """Compiles a checked config's training step.

    Raises:
      DoesNotFitError: it needs more memory than a core has.
    """
    built = setup.build(config, mesh, num_classes=num_classes)
    return compiling.compile_step(built.train_step, built.state, setup.batch_shapes(config, mesh, max_labels))


def compile_eval(
    config: ml_collections.ConfigDict, mesh: Mesh, num_classes: int, max_labels: int
) -> compiling.Compiled:
    """Compiles a checked config's evaluation step; see `compile_train`."""
    built = setup.build(config, mesh, num_classes=num_classes)
    step = accuracy.make_eval_step(built.model, config.loss, mesh, keep_logits=max_labels > 1)
    return compiling.compile_step(step, built.state.params, setup.batch_shapes(config, mesh, max_labels))


def bytes_on_a_core(tree: Any) -> int:
    """Bytes that the arrays of a tree, given by shapes with shardings, take on one core."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
