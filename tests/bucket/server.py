"""The sockets: one thread for each connection, TLS within CONNECT, faults, and an entry in the log for each request."""

import io
import pathlib
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable

from tests.bucket.admin import PREFIX, Admin, World
from tests.bucket.api import error_response
from tests.bucket.faults import Fault
from tests.bucket.log import Entry
from tests.bucket.messages import BadRequestError, Request, Response, read_request, send
from tests.bucket.objects import StorageError

_OUR_HOSTS = re.compile(r"([\w-]+\.)*googleapis\.com:443")
_MALFORMED = (KeyError, ValueError, TypeError, IndexError)  # what a request without its parts leads to


class Server:
    """Listens on 127.0.0.1, for HTTP and as a proxy for HTTPS.

    Threads, because a thread waits for a slow client or a latency without work for the core, and sends a range of
    megabytes in one call without Python's lock.
    """

    def __init__(self, port: int, certificate: pathlib.Path, admin: Admin) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=512)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._admin = admin
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def serve_forever(self) -> None:
        """Accepts connections."""
        while True:
            sock, address = self._listening.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock, address[1]), daemon=True).start()

    def _serve(self, sock: socket.socket, client: int) -> None:
        connection = _Connection(sock, client, self._admin)
        try:
            while (request := connection.next_request()) is not None:
                if request.method == "CONNECT":
                    connection.open_tunnel(request, self._tls)
                elif not connection.answer(request):
                    return
        except (BadRequestError, OSError):
            pass  # the client went, or spoke something else; what it had asked for is in the log
        finally:
            connection.close()


class _Connection:
    """One client's connection."""

    def __init__(self, sock: socket.socket, client: int, admin: Admin) -> None:
        self._sock, self._client, self._admin = sock, client, admin
        self._stream: io.BufferedReader = sock.makefile("rb")
        self._encrypted = False

    def close(self) -> None:
        self._stream.close()
        self._sock.close()

    def next_request(self) -> Request | None:
        return read_request(self._stream, lambda: self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"), self._encrypted)

    def open_tunnel(self, request: Request, tls: ssl.SSLContext) -> None:
        """Becomes the host that a client wants to reach through the proxy. Every host but Google's is refused."""
        entry = _Pending(self._admin.world, request, self._client)
        if not _OUR_HOSTS.fullmatch(request.target):
            send(self._sock, Response(403))
            entry.end(403, 0, "refused: not one of Google's hosts")
            return
        self._sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            self._sock = tls.wrap_socket(self._sock, server_side=True)
        except OSError as error:
            entry.end(0, 0, f"TLS failed: {error}")
            raise
        entry.drop()
        self._stream, self._encrypted = self._sock.makefile("rb"), True

    def answer(self, request: Request) -> bool:
        """Answers a request. Returns whether the connection stays open."""
        if request.path.startswith(PREFIX):
            send(self._sock, _or_error(lambda: self._admin.answer(request)))
            return True
        world = self._admin.world
        pending = _Pending(world, request, self._client)
        action = _route(world, request)
        world.faults.wait(world.faults.latency_ms / 1000)
        faults = world.faults
        fault = faults.of(request.method, request.target)
        faults.wait(fault.hang_seconds)
        response = _or_error(action) if fault.status is None else _refusal(fault, request)
        sent, note = 0, "fault" if fault.match else ""
        try:
            sent = send(self._sock, response, request.method == "HEAD", fault.cut_after, faults.bytes_per_second)
        except OSError as error:
            note = f"the client went: {type(error).__name__}"
            raise
        finally:
            pending.end(response.status, sent, note)
        return fault.cut_after is None and request.headers.get("connection", "").lower() != "close"


class _Pending:
    """A request in flight, on its way to the log."""

    def __init__(self, world: World, request: Request, client: int) -> None:
        self._log, self._request, self._client = world.log, request, client
        self._in_flight, self._start = world.log.begin(), time.time()

    def drop(self) -> None:
        """Ends without an entry."""
        self._log.end(None)

    def end(self, status: int, sent: int, note: str) -> None:
        """Ends with an entry."""
        request = self._request
        self._log.end(
            Entry(
                time=self._start,
                method=request.method,
                path=urllib.parse.unquote(request.target),
                status=status,
                received=len(request.body),
                sent=sent,
                seconds=time.time() - self._start,
                range=request.headers.get("range", ""),
                user_agent=request.headers.get("user-agent", ""),
                connection=self._client,
                in_flight=self._in_flight,
                operation=request.operation,
                bucket=request.bucket,
                name=request.name,
                note=note,
                tls=request.tls,
            )
        )


def _route(world: World, request: Request) -> Callable[[], Response]:
    """Returns what answers a request, an error included. The request then says what it is about."""
    try:
        return world.api.route(request)
    except (StorageError, *_MALFORMED) as error:
        response = _error(error)
        return lambda: response


def _or_error(action: Callable[[], Response]) -> Response:
    try:
        return action()
    except (StorageError, *_MALFORMED) as error:
        return _error(error)


def _error(error: Exception) -> Response:
    if not isinstance(error, StorageError):
        error = StorageError(400, "invalid", f"{type(error).__name__}: {error}")
    return error_response(error)


def _refusal(fault: Fault, request: Request) -> Response:
    assert fault.status is not None
    message = f"injected into {request.method} {request.path}"
    return error_response(StorageError(fault.status, "backendError", message))
