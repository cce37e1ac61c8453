"""Files that are written only if nobody else has written them meanwhile, on a disk or in a bucket, by TensorStore."""

import os

from mixer.runtime import bucket

_PATIENCE = 120.0  # seconds during which a request is repeated


class ConditionalStore:
    """The files of one folder, local or in a bucket.

    A generation stands for what was read. The next write makes another one.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Opens the folder."""
        self._folder = str(folder)
        if bucket.is_remote(folder):
            name, key = bucket.split(folder)
            self._prefix = f"{key.rstrip('/')}/"
            self._store = bucket.store(name)
        else:
            import tensorstore

            self._prefix = ""
            self._store = tensorstore.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()

    def read(self, name: str) -> tuple[bytes | None, bytes]:
        """Reads a file; None if there is none. Returns its generation too.

        Raises:
          OSError: it cannot be read.
        """
        with bucket.tensorstore_as_os_errors(f"{self._folder}/{name}"):
            result = self._store.read(self._prefix + name).result(timeout=_PATIENCE)
        return (result.value if result.state == "value" else None), result.stamp.generation

    def write(self, name: str, data: bytes | None, generation: bytes) -> bytes:
        """Writes a file, or deletes it if `data` is None.

        Returns:
          Its new generation; b"" if the file was no longer of the given one, and is left as it is.

        Raises:
          OSError: it cannot be written.
        """
        with bucket.tensorstore_as_os_errors(f"{self._folder}/{name}"):
            written = self._store.write(self._prefix + name, data, if_equal=generation).result(timeout=_PATIENCE)
        return bytes(written.generation)
