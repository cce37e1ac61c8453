"""Reads what the offline mode of Weights & Biases keeps in a run's folder."""

import json
import struct
from typing import Any

_BLOCK, _FILE_HEADER, _PART_HEADER = 32768, 7, 7  # bytes, of LevelDB's log format
_WHOLE, _LAST = 1, 4


def records(workdir) -> list[tuple[str, Any]]:
    """Returns the kind and the content of each record of all starts of a run, in their order."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((workdir / "wandb").glob("offline-run-*/*.wandb")):
        for part in _parts(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(part)
            kind = record.WhichOneof("record_type")
            found.append((kind, getattr(record, kind)))
    return found


def rows(workdir) -> list[dict[str, Any]]:
    """Returns the rows of a run's history."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
        for kind, history in records(workdir)
        if kind == "history"
    ]


def config(workdir) -> dict[str, Any]:
    """Returns the config of a run."""
    updates = [item for kind, update in records(workdir) if kind == "config" for item in update.update]
    return {item.key: json.loads(item.value_json) for item in updates}


def _parts(data: bytes):
    place, part = _FILE_HEADER, b""
    while place + _PART_HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PART_HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        start = place + _PART_HEADER
        part, place = part + data[start : start + length], start + length
        if kind in (_WHOLE, _LAST):
            yield part
            part = b""
