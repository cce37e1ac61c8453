"""Files that are written whole or not at all."""

import contextlib
import secrets
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def written_whole(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary path to write to, in the same folder. At the end renames this file to `path`.

    If the process is killed before the end, the old file remains as it was. The temporary name is random, so several
    processes may write the same file.

    Raises:
      OSError: the file cannot be written.
    """
    final = epath.Path(path)
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    with written_whole(path) as partial:
        partial.write_text(text)
