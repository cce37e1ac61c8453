"""What several processes compare before they train as one: the command, the software and the data."""

import hashlib
import importlib.metadata
import pathlib
import platform
import zlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import mixer
from mixer.config.checks import flat
from mixer.data.sources import Source

# What decides the program or the pixels. On most machines, TensorFlow's package is tensorflow-cpu.
_PACKAGES = (
    "jax", "jaxlib", "libtpu", "flax", "optax", "numpy", "tensorflow", "tensorflow-cpu", "opencv-python-headless",
    "pillow",
)  # fmt: skip
_JAX_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def of_source(name: str, source: Source) -> dict[str, str]:
    """Returns the facts of a split: how many examples, its classes, and a digest of a few records spread over it.

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
    return {
        f"the number of examples of {name}": f"{source.num_examples:,}",
        f"the number of classes of {name}": f"{len(source.class_names):,}",
        f"the digest of the class names of {name}": _digest("\n".join(source.class_names).encode()),
        f"the digest of some records of {name}": sample.hexdigest()[:_DIGITS],
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def of_weights(params: Any) -> dict[str, str]:
    """Returns a digest of parameters on the host."""
    sums = [
        f"{jax.tree_util.keystr(path)} {zlib.crc32(np.ascontiguousarray(leaf).tobytes())}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    return {"the digest of the weights of init_from": _digest("\n".join(sums).encode())}
