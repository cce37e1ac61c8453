"""The three kinds of upload: an object's bytes alone, with its description, and resumed piece by piece."""

import dataclasses
import itertools
import json
import re
from typing import Any

from tests.bucket.messages import Request, Response, json_response
from tests.bucket.objects import StorageError, Store, StoredObject

_NUMBERS = itertools.count(1)
_ANY_TYPE = "application/octet-stream"


@dataclasses.dataclass
class _Session:
    """A resumable upload. `done` is the description of the object that came of it."""

    bucket: str
    name: str
    conditions: dict[str, str]
    described: dict[str, Any]
    data: bytearray = dataclasses.field(default_factory=bytearray)
    done: dict[str, Any] | None = None


class Uploads:
    """Writes what is uploaded to a store, and keeps the sessions of resumable uploads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sessions: dict[str, _Session] = {}

    def name_of(self, request: Request) -> str:
        """Returns the name of the object that a request uploads; "" if it gives none."""
        if session := self._sessions.get(request.query.get("upload_id", "")):
            return session.name
        if name := request.query.get("name"):
            return name
        if request.query.get("uploadType") == "multipart":
            return _description(request).get("name", "")
        return request.json().get("name", "") if request.query.get("uploadType") == "resumable" else ""

    def answer(self, request: Request, bucket: str) -> Response:
        """Answers a request below /upload, whose name is known."""
        self._store.bucket(bucket)
        if "upload_id" in request.query:
            return self._resume(request)
        kinds = {"media": self._media, "multipart": self._multipart, "resumable": self._begin}
        kind = request.query.get("uploadType", "")
        if kind not in kinds:
            raise StorageError(400, "invalid", f"uploadType {kind!r}")
        return kinds[kind](request, bucket)

    def _media(self, request: Request, bucket: str) -> Response:
        described = {"contentType": request.headers.get("content-type")}
        return json_response(self._write(bucket, request.name, request.body, described, request.query))

    def _multipart(self, request: Request, bucket: str) -> Response:
        _, (_, data) = parts_of(request)
        return json_response(self._write(bucket, request.name, data, _description(request), request.query))

    def _begin(self, request: Request, bucket: str) -> Response:
        described = request.json()
        described.setdefault("contentType", request.headers.get("x-upload-content-type"))
        number = f"upload-{next(_NUMBERS)}"
        self._sessions[number] = _Session(bucket, request.name, request.query, described)
        scheme, path = "https" if request.tls else "http", f"/upload/storage/v1/b/{bucket}/o"
        place = f"{scheme}://{request.headers['host']}{path}?uploadType=resumable&upload_id={number}"
        return Response(headers={"Location": place, "X-GUploader-UploadID": number})

    def _resume(self, request: Request) -> Response:
        session = self._sessions.get(request.query["upload_id"])
        if session is None:
            raise StorageError(404, "notFound", "no such upload")
        if request.method == "DELETE":
            del self._sessions[request.query["upload_id"]]
            return Response(499)
        if session.done is None and _append(session.data, request):
            data = bytes(session.data)
            session.done = self._write(session.bucket, session.name, data, session.described, session.conditions)
            session.data = bytearray()
        if session.done is not None:
            return json_response(session.done)
        return Response(308, headers={"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})

    def _write(
        self, bucket: str, name: str, data: bytes, described: dict[str, Any], conditions: dict[str, str]
    ) -> dict[str, Any]:
        new = StoredObject(name, data, described.get("contentType") or _ANY_TYPE, described.get("metadata") or {})
        return self._store.put(bucket, new, conditions).resource(bucket)


def _append(data: bytearray, request: Request) -> bool:
    """Adds a piece where its header Content-Range places it. Returns whether the object is whole."""
    given = request.headers.get("content-range", "")
    if piece := re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given):
        first, total = int(piece[1]), piece[2]
        if first > len(data):
            raise StorageError(400, "invalid", f"bytes from {first} on, but only {len(data)} are there")
        del data[first:]
    elif asked := re.fullmatch(r"bytes \*/(\d+|\*)", given):  # an empty piece: a question, or the end
        total = asked[1]
    else:
        total = str(len(data) + len(request.body))
    data += request.body
    return total != "*" and len(data) >= int(total)


def _description(request: Request) -> dict[str, Any]:
    """Returns the description of the object in the first part of a multipart upload."""
    return json.loads(parts_of(request)[0][1] or b"{}")


def parts_of(request: Request) -> list[tuple[bytes, bytes]]:
    """Returns the headers and the body of each part of a multipart request."""
    boundary = re.search(r"boundary=[\"']?([^\"';]+)", request.headers["content-type"])
    if boundary is None:
        raise StorageError(400, "invalid", "no boundary")
    pieces = request.body.split(b"--" + boundary[1].encode())[1:-1]
    end = (
        b"\r\n" if pieces and pieces[0].startswith(b"\r\n") else b"\n"
    )  # google-cloud-storage's batches have the latter
    parts = []
    for piece in pieces:
        head, _, body = piece.removeprefix(end).partition(end + end)
        parts.append((head, body.removesuffix(end)))
    return parts
