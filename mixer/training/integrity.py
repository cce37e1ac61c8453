"""Tells whether a checkpoint is whole, by a list of its files and by a checksum of each array.

Orbax recognises a checkpoint by the name of its folder alone. It offers folders whose commit mark or files are missing
or incomplete, and fails when it reads them. It does not notice a flipped bit in a large array.
"""

import base64
import errno
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError, first_line

_log = logging.getLogger(__name__)

CHECKSUMS = "checksums"  # the name under which a checkpoint holds them, beside the fields of the state

LIST = "files.json"
_COMMIT_MARK = "commit_success.txt"  # Orbax writes it last
_REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax changes it when it commits
_ACCURACY = "metrics"  # a folder; the state is whole without it
_SMALL = 1 << 20  # bytes; larger files hold arrays, which have their own checksums

# ----------------------------------------------------------------------------------------------------------- the files


def folder_of(workdir: epath.PathLike) -> epath.Path:
    """Returns the folder of a run's checkpoints."""
    return epath.Path(bucket.absolute(workdir)) / "checkpoints"


def steps_of(folder: epath.Path, listing: Iterable[str] | None = None) -> list[int]:
    """Returns the steps of the checkpoints in a folder that were once complete, whole or damaged; ascending.

    On a disk, a checkpoint gets its name when it is complete. In a bucket it is written under its name, so one whose
    saving was interrupted counts only if it has a commit mark or a list of its files.

    Args:
      folder: of all checkpoints.
      listing: the folder's files in a bucket, if they are known.

    Raises:
      OSError: the folder cannot be listed.
    """
    if bucket.is_remote(folder):
        paths = [name.split("/") for name in (bucket.listing(folder) if listing is None else listing)]
        found = {path[0] for path in paths if path[1:] in ([_COMMIT_MARK], [LIST])}
    else:
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(int(name) for name in found if name.isdecimal())


def has_files(folder: epath.Path) -> bool:
    """Tells whether anything is in the folder of all checkpoints. Raises OSError if it cannot be listed."""
    if bucket.is_remote(folder):
        return bool(bucket.listing(folder))
    return folder.is_dir() and any(folder.iterdir())


def write_list(folder: epath.Path) -> None:
    """Lists the files of a checkpoint: for each its size in bytes, and a checksum if it is small or in a bucket.

    Call it when all other files are written and the checkpoint is not yet committed.

    Raises:
      OSError: the files cannot be read, or the list cannot be written.
    """
    found = {name: file for name, file in _files(folder).items() if name.split("/")[0] not in (_REWRITTEN, _ACCURACY)}
    files.write_text(folder / LIST, json.dumps(found, indent=1))


def is_committed(folder: epath.Path) -> bool:
    """Tells whether a checkpoint in a bucket has its commit mark.

    Raises:
      OSError: the bucket cannot be listed.
    """
    return _COMMIT_MARK in bucket.children(folder)[1]


def commit_complete(folder: epath.Path) -> None:
    """Writes the commit mark of each checkpoint in a bucket that is complete without it.

    The list of files is written when all else is there. So if the files agree with it, only the mark is missing: the
    process was killed just before it, or it was lost. One process calls this before Orbax opens the folder.

    Raises:
      OSError: the bucket cannot be read or written.
    """
    names = bucket.listing(folder)
    for step in steps_of(folder, names):
        mark = f"{step}/{_COMMIT_MARK}"
        if mark not in names and not fault(folder / str(step), needs_mark=False):
            files.write_text(folder / mark, "All files are as they were listed.")


def fault(folder: epath.Path, needs_mark: bool = True) -> str:
    """Compares the files of a checkpoint with its list. Reads no large file.

    Returns:
      What is wrong with the first file that differs; "" if the files are as they were written.

    Raises:
      UserError: the disk or bucket does not let them be read now, so nobody knows whether the checkpoint is whole.
    """
    try:
        found = _files(folder)
        if needs_mark and _COMMIT_MARK not in found:
            return f"it has no {_COMMIT_MARK}, so it was never committed"
        json.loads(files.read_bytes(folder / _REWRITTEN))
        for name, (size, checksum) in json.loads(files.read_bytes(folder / LIST)).items():
            if name not in found:
                return f"{name} is missing"
            if found[name].size != size:
                return f"{name} holds {found[name].size} bytes, not {size}"
            # A list from a disk has no checksums of large files. Lists of 2026-11 and before have numbers.
            here = found[name].checksum
            if isinstance(checksum, str) and checksum and here and here != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        _raise_if_out_of_reach(folder, error)
        return f"{LIST} or {_REWRITTEN} cannot be read ({type(error).__name__})"
    return ""


def _files(folder: epath.Path) -> dict[str, bucket.Object]:
    """Returns all files below a folder. On a disk, only small files have a checksum.

    The checksum is an MD5. A CRC32C would not do: Orbax's files are made of parts that end with their own CRC32C, so
    that the CRC32C of a whole file is the same for any content.
    """
    if bucket.is_remote(folder):
        return bucket.listing(folder)
    paths = (path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): _described(path) for path in paths}


def _described(path: pathlib.Path) -> bucket.Object:
    size = path.stat().st_size
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).digest() if size <= _SMALL else b""
    return bucket.Object(size, base64.b64encode(digest).decode())


# ---------------------------------------------------------------------------------------------------------- the arrays


def checksums(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns a checksum of each array, as one vector for each field.

    The checksum is the sum of the array's bits, read as unsigned integers, modulo 2^32. Each change of a single bit
    changes it. Orbax has its own checksums for its index and for small arrays, but not for large ones.
    """

    def checksum(array: Any) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        return jnp.sum(bits, dtype=jnp.uint32)

    return {name: jnp.stack([checksum(array) for array in jax.tree.leaves(tree)]) for name, tree in fields.items()}


def computed_checksums(fields: dict[str, Any], sharding: Sharding | None) -> dict[str, Any]:
    """Computes the checksums with this sharding. Saving and restoring run the same program, compiled once."""
    computed: dict[str, Any] = jax.jit(checksums, out_shardings=sharding)(fields)
    return computed


def _checksums_on_host(fields: dict[str, Any]) -> dict[str, np.ndarray]:
    """Computes the same checksums of NumPy arrays, without compiling anything."""

    def checksum(array: np.ndarray) -> np.uint32:
        bits = np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}")
        return np.sum(bits, dtype=np.uint32)

    return {name: np.array([checksum(array) for array in jax.tree.leaves(tree)]) for name, tree in fields.items()}


def _check_arrays(saved: dict[str, Any]) -> None:
    """Checks that arrays are as they were when they were saved.

    Raises:
      ValueError: an array of a field differs.
    """
    expected = saved[CHECKSUMS]
    sharding = next(getattr(values, "sharding", None) for values in expected.values())  # NumPy arrays have none
    fields = {name: saved[name] for name in expected}
    found = _checksums_on_host(fields) if sharding is None else computed_checksums(fields, sharding)
    for name, values in expected.items():
        if not np.array_equal(values, found[name]):
            raise ValueError(f"{name} is not what was written, its checksum differs")


# --------------------------------------------------------------------------------------------------- whole checkpoints


def readable(
    folder: epath.Path, steps: list[int], read: Callable[[int], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the checkpoints that are whole. Warns of each checkpoint that is not.

    If one of several processes cannot read a checkpoint, all processes skip it.

    Args:
      folder: of all checkpoints.
      steps: the checkpoints to try, in this order.
      read: reads the checkpoint of a step. It returns fields of a state, and their checksums as `CHECKSUMS`.

    Yields:
      The step of a checkpoint, and what `read` returned.

    Raises:
      UserError: the disk or bucket does not let a checkpoint be read now. It must not count as damaged, and be deleted.
      JaxRuntimeError: the devices have too little memory.
    """
    for step in steps:
        reason, saved = fault(folder / str(step)), {}
        if on_all_hosts(not reason):
            try:
                saved = read(step)
                _check_arrays(saved)
            except UserError:
                raise
            except Exception as error:  # its type depends on the part that is damaged
                if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
                    raise  # the devices have too little memory, which is no fault of the checkpoint
                _raise_if_out_of_reach(folder / str(step), error)
                reason = reason_of(error)
            if on_all_hosts(not reason):
                yield step, saved
        if reason:
            _log.warning("Checkpoint %d skipped, it cannot be read: %s", step, reason)


def _raise_if_out_of_reach(folder: epath.Path, error: Exception) -> None:
    """Raises UserError if an error says nothing of the files, but that the disk or bucket refuses for a while."""
    if bucket.is_remote(folder):
        refused = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        passes = refused or _OUT_OF_REACH.search(f"{type(error).__name__} {error}") is not None
    else:
        of_tensorstore = re.search(r"\[os_error_code='(\d+)'", str(error))
        passes = (int(of_tensorstore[1]) if of_tensorstore else getattr(error, "errno", None)) in _PASSING
    if passes:
        where = "the bucket answers" if bucket.is_remote(folder) else "the disk lets it be read"
        raise UserError(f"{folder} cannot be read now ({reason_of(error)}): try again when {where}") from None


# Of a disk, such as one over a network. A bad block (EIO) is a damage.
_PASSING = (
    errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM,
)  # fmt: skip
# As TensorStore and TensorFlow say it.
_OUT_OF_REACH = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|(Unavailable|DeadlineExceeded|ResourceExhausted|Aborted|PermissionDenied|Unauthenticated)Error"
)


def on_all_hosts(condition: bool) -> bool:
    """Tells whether a condition holds in every process. All processes must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def in_all_or_none(handler: Any) -> Any:
    """Returns one of Orbax's handlers with a `restore` that fails in every process if it fails in one.

    After it, Orbax lets the processes meet. One that alone fails would meet the others elsewhere, and all would wait
    for ever. Orbax finds handlers by their exact class, so this is no class of its own.
    """
    restore = handler.restore

    def restore_together(*arguments: Any, **named: Any) -> Any:
        restored, failed = None, None
        try:
            restored = restore(*arguments, **named)
        except Exception as error:
            failed = error
        if not on_all_hosts(failed is None):
            raise failed or OSError("another process cannot read its part")
        return restored

    handler.restore = restore_together
    return handler


def reason_of(error: Exception) -> str:
    """Returns the part of an error of Orbax, TensorStore or a bucket that helps a user."""
    if found := re.search(r"([^:\n]+) \[os_error_code='\d+'|\"message\": \"([^\"]+)\"", str(error)):
        return (found[1] or found[2]).strip()
    return re.split(r" \[tensorstore_spec|\. See full TensorStore details", first_line(error))[0]
