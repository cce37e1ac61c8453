"""The log of requests, in memory."""

import dataclasses
import threading
import time

_MOMENT = 0.2  # seconds


@dataclasses.dataclass(frozen=True)
class Entry:
    """One request that was answered, or could not be.

    Attributes:
      time: when it had arrived whole, in seconds since 1970.
      method: GET, POST and so on; CONNECT only if the host was refused or TLS failed.
      path: path and query, without %-escapes.
      status: the answer's HTTP status.
      received: bytes of the request's body.
      sent: bytes of the answer's body.
      seconds: from the request's arrival to the end of the answer.
      range: the header Range, or "".
      user_agent: the header User-Agent.
      connection: the client's port: one number for each connection.
      in_flight: how many requests were being answered when this one arrived, with it.
      operation: read, stat, list, write, describe, delete, copy, compose, bucket or batch.
      bucket: name of the bucket.
      name: name of the object, or the prefix of a listing.
      note: what went wrong: "fault" for an injected one, or how the client went away.
      tls: whether it came by HTTPS, through the proxy.
    """

    time: float
    method: str
    path: str
    status: int
    received: int
    sent: int
    seconds: float
    range: str
    user_agent: str
    connection: int
    in_flight: int
    operation: str
    bucket: str
    name: str
    note: str
    tls: bool


class Log:
    """Entries in the order in which the answers ended, and the number of requests in flight."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._in_flight = 0
        self._cleared = 0.0
        self._lock = threading.Condition()

    def begin(self) -> int:
        """Counts a request that arrived. Returns how many are in flight, with it."""
        with self._lock:
            self._in_flight += 1
            return self._in_flight

    def end(self, entry: Entry | None) -> None:
        """Counts a request that is over, and adds it unless it began before the log was cleared."""
        with self._lock:
            self._in_flight -= 1
            if entry and entry.time >= self._cleared:
                self._entries.append(entry)
            self._lock.notify_all()

    def clear(self) -> None:
        """Forgets all requests that have begun."""
        with self._lock:
            self._entries, self._cleared = [], time.time()

    def entries(self) -> list[Entry]:
        """Returns a copy. A client has its answer a moment before the entry is there, so it waits for that moment."""
        with self._lock:
            self._lock.wait_for(lambda: self._in_flight == 0, timeout=_MOMENT)
            return list(self._entries)
