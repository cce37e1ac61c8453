"""epath without the names of owners, which a container may not have."""

import os
import stat

from etils.epath import backend, stat_utils


def do_without() -> None:
    """Makes epath's `stat` leave out the names of a file's owner and group, which nothing here needs.

    It asks the system for them. In a container that runs under any user number (`docker run --user 4321`), or of files
    of such an owner, there is none, and epath raises a KeyError (etils 1.15.0). Orbax and TFDS use `stat` too.
    """
    type(backend.os_backend).stat = _stat


def _stat(self: object, path: str | os.PathLike[str]) -> stat_utils.StatResult:
    found = os.stat(path)
    return stat_utils.StatResult(
        is_directory=stat.S_ISDIR(found.st_mode),
        length=found.st_size,
        mtime=int(found.st_mtime),
        owner=None,
        group=None,
        mode=found.st_mode,
    )
