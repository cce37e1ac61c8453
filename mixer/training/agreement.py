"""Several processes that train as one compare what they are about to do, before the first step.

Otherwise processes with different arguments would train on and end with different parameters, or wait for each other
for ever.
"""

import hashlib
import importlib.metadata
import json
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mixer.config.checks import flat
from mixer.runtime import files
from mixer.runtime.errors import UserError

if TYPE_CHECKING:
    from mixer.data.sources import Source

_OWN = ("input.data_dir", "fewshot.data_dir", "init_from")  # where files lie may differ from host to host
_TOKEN = "token"  # by which process 0 names the file that all must see
_SOFTWARE = ("mixer", "jax", "jaxlib", "flax", "optax", "numpy")
_SEEN_WITHIN = 15.0  # seconds in which a file of one host must appear on the others; NFS takes some


def check(config: ml_collections.ConfigDict, sources: Mapping[str, "Source"], workdir: epath.Path) -> None:
    """Compares config, software, data and the run's folder of all processes. All of them must call it.

    Args:
      config: of the run.
      sources: the splits that the run reads, by what messages call them.
      workdir: the run's folder.

    Raises:
      UserError: in every process, if anything differs; names the first differences.
    """
    if jax.process_count() == 1:
        return
    token = secrets.token_hex(8)
    mine = _mark(workdir, token)
    if jax.process_index() == 0:
        files.write_text(mine, "")
    try:
        found = _gathered({**facts(config, sources), _TOKEN: token})
        _raise_for(differences(found), "start all processes with the same command, software and data")
        seen = _gathered({"sees": str(_sees(_mark(workdir, found[0][_TOKEN])))})
        blind = [f"process {number}" for number, one in enumerate(seen) if one["sees"] == "False"]
        unseen = f"not seen by {' and '.join(blind)}: what process 0 writes to its folder {workdir}"
        _raise_for([unseen] if blind else [], "give --workdir a folder that all share, or gs://")
    finally:
        if jax.process_index() == 0:
            files.delete(mine)


def facts(config: ml_collections.ConfigDict, sources: Mapping[str, "Source"]) -> dict[str, str]:
    """Returns, by name, what must be the same in all processes."""
    settings = {name: repr(value) for name, value in flat(config).items() if name not in _OWN}
    software = {f"the version of {name}": importlib.metadata.version(name) for name in _SOFTWARE}
    software["the version of Python"] = platform.python_version()
    data: dict[str, str] = {}
    for name, source in sources.items():
        data |= _facts_of(name, source)
    return {**settings, **software, **data}


def _facts_of(name: str, source: "Source") -> dict[str, str]:
    """Returns the size of a split, and digests of its classes and of three of its records."""
    last = source.num_examples - 1
    digest = hashlib.sha256()
    for image, labels in source.fetch(np.array(sorted({0, last // 2, last}))):
        digest.update(image or b"")
        digest.update(repr([int(label) for label in labels]).encode())
    return {
        f"the number of {name} examples": str(source.num_examples),
        f"the class names of the {name} data": hashlib.sha256("\n".join(source.class_names).encode()).hexdigest()[:12],
        f"the {name} data": digest.hexdigest()[:12],
    }


def differences(found: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns a line for each fact that another process than the first has otherwise."""
    return [
        f"process {number} differs from process 0 in {name}: {one.get(name)} there, {found[0].get(name)} in process 0"
        for number, one in enumerate(found)
        for name in {**found[0], **one}
        if name != _TOKEN and one.get(name) != found[0].get(name)
    ]


def _raise_for(problems: list[str], remedy: str) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{'; '.join(problems[:3])}{more}; {remedy}")


def _gathered(mine: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the facts of every process, in the order of their numbers."""
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(text), np.int32))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def _mark(workdir: epath.Path, token: str) -> epath.Path:
    return workdir / f".shared-{token}"


def _sees(path: epath.Path) -> bool:
    limit = time.monotonic() + _SEEN_WITHIN
    while not files.exists(path):
        if time.monotonic() > limit:
            return False
        time.sleep(0.5)
    return True
