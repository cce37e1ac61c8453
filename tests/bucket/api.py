"""The routes: what each request of the JSON API, and GET, HEAD, PUT and DELETE of the XML API, does to the store."""

import functools
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from tests.bucket.messages import Request, Response, json_response
from tests.bucket.objects import StorageError, Store, StoredObject
from tests.bucket.uploads import Uploads, parts_of

_BUCKET = "/b/(?P<bucket>[^/]+)"
_OBJECT = rf"{_BUCKET}/o/(?P<name>[^/]+)"  # a slash within a name comes as %2F
_IN_HEADERS = {  # where the XML API has its conditions
    "x-goog-if-generation-match": "ifGenerationMatch",
    "x-goog-if-metageneration-match": "ifMetagenerationMatch",
}


class Api:
    """Answers requests from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uploads = Uploads(store)
        self._routes: list[tuple[str, str, Callable[..., Response]]] = [
            (rf"{_OBJECT}/(?P<verb>rewriteTo|copyTo)/b/(?P<to>[^/]+)/o/(?P<new>[^/]+)", "copy", self._copy),
            (rf"{_OBJECT}/compose", "compose", self._compose),
            (_OBJECT, "", self._object),
            (rf"{_BUCKET}/o/?", "list", self._list),
            (rf"{_BUCKET}/storageLayout", "bucket", self._layout),
            (_BUCKET, "bucket", self._bucket),
            ("/(?P<bucket>[^/]+)/(?P<name>.+)", "", self._xml),
        ]

    def answer(self, request: Request) -> Response:
        """Answers a request.

        Raises:
          StorageError: there is no such object, bucket or route, or a condition does not hold.
        """
        return self.route(request)()

    def route(self, request: Request) -> Callable[[], Response]:
        """Returns what answers a request, and says in the request what it is about.

        Raises:
          StorageError: there is no such route.
        """
        path = request.path.removeprefix("/download")
        if found := re.fullmatch(rf"(?:/resumable)?/upload/storage/v1{_BUCKET}/o", path):
            request.operation, request.bucket = "write", found["bucket"]
            request.name = self._uploads.name_of(request)
            return functools.partial(self._uploads.answer, request, found["bucket"])
        if path.startswith("/batch/"):
            request.operation = "batch"
            return functools.partial(self._batch, request)
        path = path.removeprefix("/storage/v1")
        for pattern, operation, answer in self._routes:
            if found := re.fullmatch(pattern, path):
                words = {key: urllib.parse.unquote(value) for key, value in found.groupdict().items()}
                request.operation = operation or _operation(request)
                request.bucket, request.name = words["bucket"], words.get("name", request.query.get("prefix", ""))
                return functools.partial(answer, request, **words)
        raise StorageError(404, "notFound", f"no route {request.method} {request.path}")

    def _object(self, request: Request, bucket: str, name: str) -> Response:
        match request.operation:
            case "read":
                return _media(request, self._store.get(bucket, name, request.query))
            case "stat":
                return json_response(self._store.get(bucket, name, request.query).resource(bucket))
            case "delete":
                self._store.delete(bucket, name, request.query)
                return Response(204)
            case _:
                found = self._store.describe(bucket, name, request.json(), request.query)
                return json_response(found.resource(bucket))

    def _list(self, request: Request, bucket: str) -> Response:
        return json_response(self._store.listing(bucket, request.query))

    def _bucket(self, request: Request, bucket: str) -> Response:
        self._store.bucket(bucket)
        described = {
            "kind": "storage#bucket",
            "id": bucket,
            "name": bucket,
            "location": "US",
            "storageClass": "STANDARD",
        }
        return json_response({**described, "metageneration": "1", "etag": "CAE=", "locationType": "region"})

    def _layout(self, request: Request, bucket: str) -> Response:
        self._store.bucket(bucket)
        described = {"kind": "storage#storageLayout", "bucket": bucket, "location": "US", "locationType": "region"}
        return json_response({**described, "hierarchicalNamespace": {"enabled": False}})

    def _copy(self, request: Request, bucket: str, name: str, verb: str, to: str, new: str) -> Response:
        found = self._store.get(bucket, name, request.query, source="Source")
        copy = StoredObject(new, found.data, found.content_type, dict(found.metadata))
        resource = self._store.put(to, copy, request.query).resource(to)
        if verb == "copyTo":
            return json_response(resource)
        size = str(len(found.data))
        answer = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True}
        return json_response({**answer, "resource": resource})

    def _compose(self, request: Request, bucket: str, name: str) -> Response:
        asked = request.json()
        sources = [self._store.get(bucket, source["name"], _conditions_on(source)) for source in asked["sourceObjects"]]
        described = asked.get("destination", {})
        content_type = described.get("contentType") or "application/octet-stream"
        new = StoredObject(name, b"".join(source.data for source in sources), content_type, is_composed=True)
        return json_response(self._store.put(bucket, new, request.query).resource(bucket))

    def _batch(self, request: Request) -> Response:
        """Answers each request within the request, one after the other."""
        out = []
        for head, inner in parts_of(request):
            lines, _, body = inner.partition(b"\r\n\r\n")
            first, *headers = lines.decode().split("\r\n")
            method, target, *_ = first.split()
            pairs = (header.partition(":") for header in headers)
            part = Request(method, target, {name.lower(): value.strip() for name, _, value in pairs}, body)
            part.path = re.sub(r"^https?://[^/]+", "", part.path)
            try:
                response = self.answer(part)
            except StorageError as error:
                response = error_response(error)
            number = re.search(rb"Content-ID: *<?([^>\r\n]+)", head, re.I)
            out.append(
                b"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-%b>\r\n\r\n"
                b"HTTP/1.1 %d .\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b\r\n"
                % (number[1] if number else b"0", response.status, len(response.data), bytes(response.data))
            )
        return Response(200, b"".join(out) + b"--batch--\r\n", content_type="multipart/mixed; boundary=batch")

    def _xml(self, request: Request, bucket: str, name: str) -> Response:
        named = {_IN_HEADERS[key]: value for key, value in request.headers.items() if key in _IN_HEADERS}
        conditions = {**request.query, **named}
        match request.method:
            case "PUT":
                content_type = request.headers.get("content-type", "application/octet-stream")
                self._store.put(bucket, StoredObject(name, request.body, content_type), conditions)
                return Response()
            case "DELETE":
                self._store.delete(bucket, name, conditions)
                return Response(204)
            case _:
                return _media(request, self._store.get(bucket, name, conditions))


def _operation(request: Request) -> str:
    """Returns what a request wants of an object: in the JSON API, or in the XML API."""
    match request.method:
        case "GET" | "HEAD":
            by_name = not request.path.startswith("/storage/")
            return "read" if by_name or request.query.get("alt") == "media" else "stat"
        case "DELETE":
            return "delete"
        case "PUT" if not request.path.startswith("/storage/"):
            return "write"
        case "PATCH" | "PUT" | "POST":
            return "describe"
    raise StorageError(405, "invalid", request.method)


def _conditions_on(source: dict[str, Any]) -> dict[str, str]:
    """Returns the conditions on one source of a composed object."""
    wanted = {"generation": source.get("generation"), **(source.get("objectPreconditions") or {})}
    return {name: str(value) for name, value in wanted.items() if value is not None}


def error_response(error: StorageError) -> Response:
    """Returns the answer that says what is wrong, as the JSON API does."""
    detail = {"message": str(error), "domain": "global", "reason": error.reason}
    return json_response(
        {"error": {"code": error.status, "message": str(error), "errors": [detail]}}, status=error.status
    )


def _media(request: Request, found: StoredObject) -> Response:
    """Returns an object's bytes, or the range that is asked for, without copying them."""
    size = len(found.data)
    headers = {
        "x-goog-generation": str(found.generation),
        "x-goog-metageneration": str(found.metageneration),
        "x-goog-stored-content-length": str(size),
        "x-goog-stored-content-encoding": "identity",
        "x-goog-hash": f"crc32c={found.crc32c}",
        "x-goog-storage-class": "STANDARD",
        "ETag": f'"E{found.generation}"',
        "Accept-Ranges": "bytes",
        "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(found.updated)),
    }
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").strip())
    if asked is None or not (asked[1] or asked[2]):
        return Response(200, found.data, headers, found.content_type)
    if asked[1]:
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
    else:
        first, last = max(size - int(asked[2]), 0), size - 1
    if first > last:
        return Response(416, b"", {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Response(206, memoryview(found.data)[first : last + 1], headers, found.content_type)
