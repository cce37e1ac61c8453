"""What a run is made of: the command, the software, the machine and the data.

Several processes compare it before they train as one, and each start of a run with the starts before.
"""

import hashlib
import importlib.metadata
import pathlib
import platform
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import mixer
from mixer.config.checks import flat
from mixer.data.sources import Source
from mixer.runtime import machine

# What decides the program or the pixels. On most machines, TensorFlow's package is tensorflow-cpu; on one with GPUs,
# JAX's plugin and NVIDIA's libraries compute.
_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "numpy", "tensorflow", "tensorflow-cpu", "opencv-python-headless",
    "pillow", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-nccl-cu12",
)  # fmt: skip
_JAX_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
TRAINING_DATA = "the training data"  # what messages, and a run's history, call its training split
_SAMPLED = 16  # records of a split whose bytes are compared
_DIGITS = 12  # of a digest


def of_command(config: ConfigDict, **others: object) -> dict[str, str]:
    """Returns every setting and these other values as text, but for paths, which may differ between hosts."""
    settings = {name: value for name, value in flat(config).items() if name.rpartition(".")[2] != "data_dir"}
    settings["init_from"] = "unset" if config.init_from is None else "set"
    return {name: repr(value) for name, value in (settings | others).items()}


def of_software() -> dict[str, str]:
    """Returns the versions of all that decides what is computed, a digest of this package, and JAX's own options."""
    versions = {name: found for name in _PACKAGES if (found := _version(name))}
    code = hashlib.sha256()
    folder = pathlib.Path(mixer.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    options = {name: repr(getattr(jax.config, name)) for name in _JAX_OPTIONS}
    python = ".".join(platform.python_version_tuple()[:2])
    return versions | options | {"Python": python, "the code of mixer": code.hexdigest()[:_DIGITS]}


def of_version() -> dict[str, str]:
    """Returns the version of this package and, in a clone, its commit. `of_software` has a digest of the code."""
    root = pathlib.Path(mixer.__file__).parent.parent
    found = {"mixer": mixer.__version__}
    if (root / ".git").exists():  # a folder above may be somebody else's clone
        try:
            git = subprocess.run(
                ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return found
        found["commit"] = git.stdout.strip()[:_DIGITS] if git.returncode == 0 else ""
    return {name: value for name, value in found.items() if value}


def of_machine(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Returns what computes: devices, processes and, where they are the devices, processors."""
    kind = mesh.devices.flat[0].device_kind
    found = {"devices": f"{mesh.size} x {kind}", "processes": str(jax.process_count())}
    return found | ({"processors": str(machine.processors())} if mesh.devices.flat[0].platform == "cpu" else {})


def of_data(training: Source, evaluated: Mapping[str, Sequence[Source]]) -> dict[str, str]:
    """Returns the facts of all splits of a run.

    Args:
      training: the training split.
      evaluated: the splits of each evaluator, by its name.

    Raises:
      UserError: the data cannot be read.
    """
    found = of_source(TRAINING_DATA, training)
    for evaluator, sources in evaluated.items():
        for number, source in enumerate(sources):
            found |= of_source(of_evaluator(evaluator) + f" ({number})" * bool(number), source)
    return found


def of_evaluator(name: str) -> str:
    """Returns what messages, and a run's history, call the split of an evaluator."""
    return f"the data of evaluator {name}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def of_source(name: str, source: Source) -> dict[str, str]:
    """Returns the facts of a split: its size, its classes, its fingerprint, and a digest of a few records.

    The records are spread over it. Its name counts too: another split is not the same one changed.

    Args:
      name: what messages call the split.
      source: the split.

    Raises:
      UserError: the data cannot be read.
    """
    records = np.unique(np.linspace(0, source.num_examples - 1, _SAMPLED).astype(np.int64))
    sample = hashlib.sha256()
    for example in source.fetch(records):
        image = b"" if example.image is None else example.image
        sample.update(hashlib.sha256(image).digest() + repr(tuple(map(int, example.labels))).encode())
    name += f" ({source.name})" if source.name else ""
    return {
        f"the number of examples of {name}": f"{source.num_examples:,}",
        f"the number of classes of {name}": f"{len(source.class_names):,}",
        f"the digest of the class names of {name}": _digest("\n".join(source.class_names).encode()),
        **{f"the digest of the {what} of {name}": digest for what, digest in source.fingerprint.items()},
        f"the digest of some records of {name}": sample.hexdigest()[:_DIGITS],
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def digest_of_weights(params: Any) -> str:
    """Returns a digest of parameters on the host."""
    sums = [
        f"{jax.tree_util.keystr(path)} {zlib.crc32(np.ascontiguousarray(leaf).tobytes())}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    return _digest("\n".join(sums).encode())
