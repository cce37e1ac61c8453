"""Reads XLA's text of a compiled program: what it sends from core to core."""

import collections
import math
import re

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?\("
)
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def collectives(text: str) -> dict[str, int]:
    """Bytes that each kind of collective leaves on a core, over one run of the program.

    What stands in a loop counts as often as the loop is known to turn, and once where XLA does not know.

    Args:
      text: of `compiled.as_text()`.
    """
    own: dict[str, collections.Counter[str]] = {}  # by computation
    calls: dict[str, list[tuple[str, int]]] = {}  # those it calls, and how often
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            own[name], calls[name] = collections.Counter(), []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            if found := _COLLECTIVE.search(line):
                own[name][found[2]] += _result_bytes(found[1], found[2], bool(found[3]))
            times = int(trips[1]) if " while(" in line and (trips := _TRIPS.search(line)) else 1
            called = _CALLED.findall(line)
            called += [b.strip(" %") for branches in _BRANCHES.findall(line) for b in branches.split(",")]
            calls[name] += [(other, times) for other in called]

    total: collections.Counter[str] = collections.Counter()
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for kind, size in own.get(name, {}).items():
            total[kind] += times * size
        waiting += [(other, times * turns) for other, turns in calls.get(name, [])]
    return dict(total)


def _result_bytes(types: str, kind: str, is_start: bool) -> int:
    """Bytes of a collective's results: an asynchronous one of some kinds has its operands before them in its type."""
    sizes = [_BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in _ARRAY.findall(types)]
    if is_start and kind == "collective-permute":
        return sizes[1]
    if is_start and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
