"""What makes a checkpoint whole: a list of its files, written with it, and a checksum of every array.

orbax takes a folder for a checkpoint by its name alone: it offers one whose commit mark is gone, or whose files were
cut short or lost, and fails in reading it; a flipped bit in a large array it does not notice.
"""

import functools
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mixer.runtime.errors import UserError, first_line

_log = logging.getLogger(__name__)

CHECKSUMS = "checksums"  # beside the fields of a state

LIST = "files.json"
_COMMIT_MARK = "commit_success.txt"  # orbax's: its last act
_REWRITTEN = "_CHECKPOINT_METADATA"  # by orbax as it commits
_ACCURACY = "metrics"  # a folder: without it the state is still whole
_SMALL = 1 << 20  # bytes; larger files hold arrays, which have checksums of their own


def write_list(folder: epath.Path) -> None:
    """Lists the files of a checkpoint that is about to be committed: their sizes in bytes, of small ones a checksum."""
    found = {
        str(path.relative_to(folder)): [path.stat().length, _checksum(path)]
        for item in folder.iterdir()
        if item.name not in (_REWRITTEN, _ACCURACY)
        for path in _files(item)
    }
    (folder / LIST).write_text(json.dumps(found, indent=1))


def fault(folder: epath.Path) -> str:
    """Says why the checkpoint in a folder is not whole; empty when it is, as far as can be told without its arrays."""
    if not (folder / _COMMIT_MARK).exists():
        return f"it has no {_COMMIT_MARK}, so it was never committed"
    try:
        json.loads((folder / _REWRITTEN).read_bytes())
        listed = json.loads((folder / LIST).read_bytes())
        for name, (size, checksum) in listed.items():
            path = folder / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().length != size:
                return f"{name} holds {path.stat().length} bytes, not {size}"
            if _checksum(path) != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{LIST} or {_REWRITTEN} cannot be read ({type(error).__name__})"
    return ""


def _files(path: epath.Path) -> Iterator[epath.Path]:
    """The files below a folder, or the file itself; epath offers no such search, for the sake of buckets."""
    if path.is_dir():
        for item in sorted(path.iterdir()):
            yield from _files(item)
    else:
        yield path


def _checksum(path: epath.Path) -> int | None:
    return google_crc32c.value(path.read_bytes()) if path.stat().length <= _SMALL else None


def readable(
    folder: epath.Path, steps: list[int], read: Callable[[int], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the steps whose checkpoint is whole and holds what was written, with what was read.

    Of several processes all pass over a checkpoint that one of them cannot read.
    """
    _ignore_late_readers()
    for step in steps:
        reason, saved = fault(folder / str(step)), {}
        if on_all_hosts(not reason):
            try:
                saved = read(step)
                _compare(saved)
            except UserError:
                raise
            except Exception as error:  # orbax raises whatever the damaged part meets
                reason = reason_of(error)
            if on_all_hosts(not reason):
                yield step, saved
        if reason:
            _log.warning("Checkpoint %d skipped, it cannot be read: %s", step, reason)


def on_all_hosts(condition: bool) -> bool:
    """Whether a condition holds in every process; each must ask."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def reason_of(error: Exception) -> str:
    """The part of an error of orbax or tensorstore that says something to a user."""
    if from_system := re.search(r"([^:\n]+) \[os_error_code='\d+'", str(error)):
        return from_system[1].strip()
    return first_line(error).partition(" [tensorstore_spec")[0]


@functools.cache
def _ignore_late_readers() -> None:
    """orbax gives up at the first array that it cannot read; what is still reading then complains on its own."""
    inner = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        of_orbax = any("orbax" in frame.filename for frame in frames)
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            inner(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def checksums(fields: dict[str, Any]) -> dict[str, Any]:
    """For each field the sum of the bits of each array, modulo 2^32: any one changed bit changes it.

    orbax guards its index and small arrays by checksums of its own, large arrays not.
    """

    def checksum(array: Any) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        return jnp.sum(bits, dtype=jnp.uint32)

    return {name: jnp.stack([checksum(array) for array in jax.tree.leaves(tree)]) for name, tree in fields.items()}


def computed(fields: dict[str, Any], lies: jax.sharding.Sharding | None) -> dict[str, Any]:
    """The checksums, laid out so: in saving and in restoring the same program, which is compiled once."""
    return jax.jit(checksums, out_shardings=lies)(fields)


def _compare(saved: dict[str, Any]) -> None:
    """Raises ValueError if what was read is not what was written."""
    expected = saved[CHECKSUMS]
    lies = next(getattr(values, "sharding", None) for values in expected.values())  # of NumPy's there is none
    found = computed({name: saved[name] for name in expected}, lies)
    for name, values in expected.items():
        if not np.array_equal(values, found[name]):
            raise ValueError(f"{name} is not what was written, its checksum differs")
