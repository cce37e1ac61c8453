"""Requests and answers of HTTP/1.1, read from and written to a socket. A body is sent without copying it."""

import dataclasses
import http
import json
import socket
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, BinaryIO

_PIECES_PER_SECOND = 50  # of a body that is sent slowly
_NO_BODY = {204, 304}


class BadRequestError(Exception):
    """Says that what came is no HTTP request."""


@dataclasses.dataclass
class Request:
    """A whole request. Names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    tls: bool = False

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.target)
        self.path = parts.path
        self.query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        # What the request is about, for the log; the routes fill it in.
        self.operation = self.bucket = self.name = ""

    def json(self) -> dict[str, Any]:
        """Returns the body as JSON. An empty one has no entries."""
        return json.loads(self.body) if self.body.strip() else {}


@dataclasses.dataclass
class Response:
    """An answer. `data` is sent as it is, or not at all if the request was HEAD."""

    status: int = 200
    data: bytes | memoryview = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    content_type: str = "application/json; charset=UTF-8"


def json_response(value: Any, status: int = 200) -> Response:
    """Returns an answer with a JSON body."""
    return Response(status, json.dumps(value).encode())


def read_request(stream: BinaryIO, go_on: Callable[[], None], tls: bool) -> Request | None:
    """Reads one request; None at the end of the stream.

    Args:
      stream: where to read.
      go_on: called before the body is read if the client waits for "100 Continue".
      tls: whether the stream is encrypted, for `Request.tls`.

    Raises:
      BadRequestError: it is not HTTP.
    """
    line = stream.readline()
    if not line.strip():
        return None
    try:
        method, target, _ = line.decode("latin-1").split()
        headers = read_headers(stream)
        if headers.get("expect", "").lower() == "100-continue":
            go_on()
        return Request(method, target, headers, _read_body(stream, headers), tls)
    except ValueError as error:
        raise BadRequestError(f"{line!r}: {error}") from error


def read_headers(stream: BinaryIO) -> dict[str, str]:
    """Reads headers and the empty line after them."""
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return _exactly(stream, int(headers.get("content-length", 0)))
    pieces = []
    while size := int(stream.readline().partition(b";")[0], 16):
        pieces.append(_exactly(stream, size))
        stream.readline()
    read_headers(stream)
    return b"".join(pieces)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:  # the client was killed: a part of an object must not look like an object
        raise ValueError(f"{len(data)} bytes came instead of {size}")
    return data


def send(
    sock: socket.socket, response: Response, head_only: bool = False, cut_after: int | None = None, rate: float = 0
) -> int:
    """Sends an answer and returns how many bytes of its body were sent.

    Args:
      sock: where to send.
      response: the answer.
      head_only: leaves the body out, as HEAD asks.
      cut_after: sends only so many bytes of the body. With 0, nothing is sent at all.
      rate: bytes a second; 0 for as fast as it goes.
    """
    if cut_after == 0:
        return 0
    body = memoryview(b"") if head_only or response.status in _NO_BODY else memoryview(response.data)
    head, sent = _head(response), body[:cut_after]
    if len(sent) < 4096:  # in one packet
        sock.sendall(head + sent)
        return len(sent)
    sock.sendall(head)
    step = max(int(rate / _PIECES_PER_SECOND), 1) if rate else len(sent)
    for at in range(0, len(sent), step):
        if rate:
            time.sleep(min(step, len(sent) - at) / rate)
        sock.sendall(sent[at : at + step])
    return len(sent)


def _head(response: Response) -> bytes:
    try:
        phrase = http.HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    headers = {"Content-Type": response.content_type, **response.headers}
    if response.status not in _NO_BODY:
        headers["Content-Length"] = str(len(response.data))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {response.status} {phrase}\r\n{lines}\r\n".encode("latin-1")
