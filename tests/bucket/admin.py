"""What a test asks of the fake bucket beside Cloud Storage's API: objects, log, faults, reset."""

import dataclasses
import pathlib
from typing import Any

from tests.bucket.api import Api
from tests.bucket.faults import Fault, Faults
from tests.bucket.log import Log
from tests.bucket.messages import Request, Response, json_response
from tests.bucket.objects import StorageError, Store, StoredObject

PREFIX = "/_fake/"  # of the paths of these requests


class World:
    """All that a reset replaces. A request ends in the world in which it began."""

    def __init__(self, buckets: list[str]) -> None:
        self.store = Store(buckets)
        self.api = Api(self.store)
        self.faults = Faults()
        self.log = Log()


class Admin:
    """Answers the test's own requests. `world` is the present one."""

    def __init__(self, buckets: list[str]) -> None:
        self._buckets = buckets
        self.world = World(buckets)

    def answer(self, request: Request) -> Response:
        """Answers a request of the test, or raises StorageError."""
        what = request.path.removeprefix(PREFIX)
        query = request.query
        match request.method, what:
            case "POST", "reset":
                ended, self.world = self.world, World(self._buckets)
                ended.faults.end()
            case "GET", "log":
                return json_response([dataclasses.asdict(entry) for entry in self.world.log.entries()])
            case "DELETE", "log":
                self.world.log.clear()
            case "PUT", "control":
                self._control(request.json())
            case "GET", "objects":
                there = self.world.store.bucket(query["bucket"]).objects.copy()
                sizes = {name: len(there[name].data) for name in sorted(there) if name.startswith(query["prefix"])}
                return json_response(sizes)
            case "POST", "load":
                load(self.world.store, pathlib.Path(query["folder"]), query["bucket"], query["prefix"])
            case "GET", "object":
                return Response(200, self.world.store.get(query["bucket"], query["name"]).data)
            case "PUT", "object":
                self.world.store.bucket(query["bucket"]).put(StoredObject(query["name"], request.body))
            case "DELETE", "object":
                self.world.store.get(query["bucket"], query["name"])
                self.world.store.bucket(query["bucket"]).remove(query["name"])
            case _:
                raise StorageError(404, "notFound", f"no route {request.method} {request.path}")
        return json_response({})

    def _control(self, changes: dict[str, Any]) -> None:
        """Changes the settings that are given, and leaves the others."""
        world = self.world
        faults = dataclasses.replace(world.faults)
        if "one_per_second" in changes:
            world.store.one_per_second = changes.pop("one_per_second")
        if "fail" in changes:
            faults.rules = [Fault(**rule) for rule in changes.pop("fail")]
        for name, value in changes.items():
            setattr(faults, name, value)
        ended, world.faults = world.faults, faults
        ended.end()


def load(store: Store, folder: pathlib.Path, bucket: str, prefix: str) -> None:
    """Copies every file below a local folder into a bucket, below a prefix."""
    there = store.bucket(bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            there.put(StoredObject(f"{prefix.strip('/')}/{relative}".lstrip("/"), path.read_bytes()))
