"""The fake bucket as tests use it: a server in a process of its own, and what clients need to reach it."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any
from unittest import mock

from tests.bucket.admin import PREFIX
from tests.bucket.client_environment import client_environment
from tests.bucket.faults import Fault
from tests.bucket.log import Entry

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "mixer-test"  # the one bucket that is there; every other answers 404


class FakeBucket:
    """A bucket that is there from `with` to the end of it.

    Clients reach it by variables of their environment: a child process by `environment()`, this process within
    `here()`. All of them (TensorFlow, tensorstore, google-cloud-storage, array_record) read these whenever they open
    something, so they may have been imported and used before. But TensorFlow remembers for five seconds what it knows
    of an object, and what was opened earlier by tensorstore keeps its address. So, in one process, each test should
    have its own names. Settings that TensorFlow reads once, such as GCS_READ_CACHE_BLOCK_SIZE_MB, need a child process.

    Attributes:
      name: the bucket's name.
      url: where the server listens, such as http://127.0.0.1:9000.
    """

    name = NAME

    def __enter__(self) -> "FakeBucket":
        self._state = pathlib.Path(tempfile.mkdtemp(prefix="bucket-"))
        command = [sys.executable, "-m", "tests.bucket", "--with_stdin", "--bucket", NAME, "--state", str(self._state)]
        self._server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline().startswith("serving on"), "the fake bucket did not start"
        self.url = (self._state / "url").read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.kill()
        self._server.communicate()
        shutil.rmtree(self._state)

    def path(self, name: str = "") -> str:
        """Returns gs://BUCKET/name, or gs://BUCKET."""
        return f"gs://{NAME}/{name}" if name else f"gs://{NAME}"

    # Clients ---------------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Returns the variables that bring a child process's clients here, to be added to its environment."""
        return client_environment(self.url, self._state / "ca.pem")

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Brings the clients of this process here. Outside, the environment is as it was."""
        with mock.patch.dict(os.environ, self.environment()):
            yield

    # Objects: not in the log, and without faults ---------------------------------------------------------------------

    def upload(self, folder: pathlib.Path, prefix: str = "") -> None:
        """Copies every file below a local folder to the names prefix/RELATIVE."""
        self._ask("POST", "load", folder=str(folder.resolve()), bucket=NAME, prefix=prefix)

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Returns the size in bytes of every object whose name begins so, in the order of their names."""
        return json.loads(self._ask("GET", "objects", bucket=NAME, prefix=prefix))

    def content(self, name: str) -> bytes:
        """Returns an object's bytes. Raises FileNotFoundError."""
        return self._ask("GET", "object", bucket=NAME, name=name)

    def put(self, name: str, data: bytes) -> None:
        """Writes an object."""
        self._ask("PUT", "object", data, bucket=NAME, name=name)

    def delete(self, name: str) -> None:
        """Deletes an object. Raises FileNotFoundError."""
        self._ask("DELETE", "object", bucket=NAME, name=name)

    def flip(self, name: str, at: int) -> None:
        """Inverts the bits of one byte of an object. A negative place counts from the end."""
        data = bytearray(self.content(name))
        data[at] ^= 0xFF
        self.put(name, bytes(data))

    # Behaviour -------------------------------------------------------------------------------------------------------

    def control(
        self,
        *,
        latency_ms: float | None = None,
        fail: Sequence[Fault] | None = None,
        one_per_second: bool | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        """Changes what is given and leaves the rest.

        Args:
          latency_ms: every request waits so long.
          fail: the rules of faults, instead of those before.
          one_per_second: whether a second change of one object within a second is refused with 429.
          bytes_per_second: how fast an answer is sent, for each connection; 0 for as fast as it goes.
        """
        changes: dict[str, Any] = {
            "latency_ms": latency_ms, "one_per_second": one_per_second, "bytes_per_second": bytes_per_second,
            "fail": None if fail is None else [dataclasses.asdict(rule) for rule in fail],
        }  # fmt: skip
        given = {key: value for key, value in changes.items() if value is not None}
        self._ask("PUT", "control", json.dumps(given).encode())

    def reset(self) -> None:
        """Empties the bucket and the log, and ends all faults. Requests in flight change nothing that is seen later."""
        self._ask("POST", "reset")

    # Log -------------------------------------------------------------------------------------------------------------

    def log(self) -> list[Entry]:
        """Returns the requests that are over, by the order of their arrival."""
        entries = [Entry(**entry) for entry in json.loads(self._ask("GET", "log"))]
        return sorted(entries, key=lambda entry: entry.time)

    def clear_log(self) -> None:
        """Forgets all requests that have begun."""
        self._ask("DELETE", "log")

    def _ask(self, method: str, what: str, body: bytes = b"", **query: str) -> bytes:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, f"{PREFIX}{what}?{urllib.parse.urlencode(query)}", body)
            response = connection.getresponse()
            data = response.read()
        if response.status == 404:
            raise FileNotFoundError(json.loads(data)["error"]["message"])
        assert response.status == 200, data
        return data
