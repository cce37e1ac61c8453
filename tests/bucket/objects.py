"""The objects of the fake bucket, in memory: generations, conditions, metadata and listing."""

import base64
import bisect
import dataclasses
import hashlib
import itertools
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import google_crc32c

Conditions = Mapping[str, str]  # the query of a request: ifGenerationMatch and its like

_GENERATIONS = itertools.count(int(time.time() * 1e6))
_AFTER_EVERY_NAME = "\U0010ffff"
_MOST_RESULTS = 1000


class StorageError(Exception):
    """Becomes an answer with an HTTP status, and with the reason and the message that Cloud Storage gives."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason = status, reason


def missing(bucket: str, name: str) -> StorageError:
    """Returns the error of an object that is not there."""
    return StorageError(404, "notFound", f"No such object: {bucket}/{name}")


@dataclasses.dataclass
class StoredObject:
    """One generation of an object. Its bytes never change."""

    name: str
    data: bytes
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    metageneration: int = 1
    is_composed: bool = False

    def __post_init__(self) -> None:
        self.generation = next(_GENERATIONS)
        self.created = self.updated = time.time()
        self.crc32c = base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()

    def resource(self, bucket: str) -> dict[str, Any]:
        """Returns the description that the JSON API gives. An object that was composed of others has no MD5 sum."""
        place = f"storage/v1/b/{bucket}/o/{urllib.parse.quote(self.name, safe='')}"
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": bucket,
            "selfLink": f"https://www.googleapis.com/{place}",
            "mediaLink": f"https://storage.googleapis.com/download/{place}?generation={self.generation}&alt=media",
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            **({} if self.is_composed else {"md5Hash": base64.b64encode(hashlib.md5(self.data).digest()).decode()}),
            "etag": f"E{self.generation}.{self.metageneration}",
            "timeCreated": _stamp(self.created),
            "updated": _stamp(self.updated),
            "metadata": self.metadata,
        }


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def _check(conditions: Conditions, found: StoredObject | None, otherwise: int, source: str = "") -> None:
    """Raises StorageError if a condition on the generation does not hold. An object that is not there has 0."""
    generation = found.generation if found else 0
    metageneration = found.metageneration if found else 0
    for name, value in (("Generation", generation), ("Metageneration", metageneration)):
        if int(conditions.get(f"if{source}{name}Match", value)) != value:
            raise StorageError(412, "conditionNotMet", f"if{source}{name}Match does not hold: it is {value}")
        if int(conditions.get(f"if{source}{name}NotMatch", -1)) == value:
            raise StorageError(otherwise, "conditionNotMet", f"if{source}{name}NotMatch does not hold")


class Bucket:
    """Objects by name. The names are also kept in order, so that a page of a listing costs what it holds."""

    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.names: list[str] = []
        self.changed: dict[str, float] = {}  # when each name was last written or deleted

    def put(self, new: StoredObject) -> None:
        """Adds an object, or replaces the one of its name."""
        if new.name not in self.objects:
            bisect.insort(self.names, new.name)
        self.objects[new.name] = new
        self.changed[new.name] = time.time()

    def remove(self, name: str) -> None:
        """Removes an object that is there."""
        del self.objects[name]
        del self.names[bisect.bisect_left(self.names, name)]
        self.changed[name] = time.time()


class Store:
    """All buckets. A method that changes something checks the conditions and the rate of changes first.

    Attributes:
      one_per_second: whether a second change of an object within a second is refused with 429.
    """

    def __init__(self, names: list[str]) -> None:
        self.buckets = {name: Bucket() for name in names}
        self.one_per_second = False
        self._lock = threading.RLock()

    def bucket(self, name: str) -> Bucket:
        """Returns a bucket, or raises StorageError (404)."""
        if name not in self.buckets:
            raise StorageError(404, "notFound", f"The specified bucket does not exist: {name}")
        return self.buckets[name]

    def get(self, bucket: str, name: str, conditions: Conditions | None = None, source: str = "") -> StoredObject:
        """Returns an object, of the `generation` in the conditions if one is there, or raises StorageError."""
        conditions = conditions or {}
        found = self.bucket(bucket).objects.get(name)
        wanted = conditions.get("sourceGeneration" if source else "generation")
        if found is None or (wanted and int(wanted) != found.generation):
            raise missing(bucket, name)
        _check(conditions, found, otherwise=304, source=source)
        return found

    def put(self, bucket: str, new: StoredObject, conditions: Conditions | None = None) -> StoredObject:
        """Writes an object and returns it."""
        with self._lock:
            there = self.bucket(bucket)
            _check(conditions or {}, there.objects.get(new.name), otherwise=412)
            self._check_rate(bucket, new.name)
            there.put(new)
        return new

    def delete(self, bucket: str, name: str, conditions: Conditions | None = None) -> None:
        """Deletes an object, or raises StorageError (404)."""
        with self._lock:
            self.get(bucket, name, conditions)
            self._check_rate(bucket, name)
            self.bucket(bucket).remove(name)

    def describe(self, bucket: str, name: str, changes: dict[str, Any], conditions: Conditions) -> StoredObject:
        """Changes the metadata of an object: values of None are removed."""
        with self._lock:
            found = self.get(bucket, name, conditions)
            self._check_rate(bucket, name)
            found.content_type = changes.get("contentType") or found.content_type
            merged = {**found.metadata, **(changes.get("metadata") or {})}
            found.metadata = {key: value for key, value in merged.items() if value is not None}
            found.metageneration += 1
            found.updated = self.bucket(bucket).changed[name] = time.time()
            return found

    def _check_rate(self, bucket: str, name: str) -> None:
        if self.one_per_second and time.time() - self.bucket(bucket).changed.get(name, 0) < 1:
            message = (
                f"The object {bucket}/{name} exceeded the rate limit for object mutation operations (create, update, "
            )
            message += "and delete). Please reduce your request rate."
            raise StorageError(429, "rateLimitExceeded", message)

    def listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns one page: objects, folders up to the delimiter, and the token of the next page.

        The query may have prefix, delimiter, maxResults, pageToken, startOffset, endOffset and
        includeTrailingDelimiter.
        """
        if "matchGlob" in query:
            raise StorageError(400, "invalid", "this fake does not know matchGlob")
        most = min(int(query.get("maxResults") or _MOST_RESULTS), _MOST_RESULTS)
        page: dict[str, Any] = {"kind": "storage#objects"}
        with self._lock:
            there = self.bucket(bucket)
            start = max(query.get("prefix", ""), query.get("startOffset", ""), _decoded(query.get("pageToken", "")))
            at, count = bisect.bisect_left(there.names, start), 0
            while at < len(there.names) and self._wanted(name := there.names[at], query):
                if count == most:
                    page["nextPageToken"] = _encoded(name)
                    break
                count += 1
                folder = _folder(name, query)
                if folder is None or (name == folder and query.get("includeTrailingDelimiter") == "true"):
                    page.setdefault("items", []).append(there.objects[name].resource(bucket))
                if folder is None:
                    at += 1
                else:
                    page.setdefault("prefixes", []).append(folder)
                    at = bisect.bisect_left(there.names, folder + _AFTER_EVERY_NAME)
        return page

    @staticmethod
    def _wanted(name: str, query: Mapping[str, str]) -> bool:
        end = query.get("endOffset")
        return name.startswith(query.get("prefix", "")) and (not end or name < end)


def _folder(name: str, query: Mapping[str, str]) -> str | None:
    """Returns the beginning of the name to the first delimiter after the prefix, if there is one."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    first, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
    return prefix + first + delimiter if found else None


def _encoded(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _decoded(token: str) -> str:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
