"""Reads the text of a compiled XLA program: how many bytes its collectives send between the cores."""

import collections
import dataclasses
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


@dataclasses.dataclass
class _Computation:
    """One computation of a program; XLA's word for a function.

    Attributes:
      sent: bytes by kind of collective, without those of the computations that it calls.
      calls: names of the computations that it calls, and how many times each call runs.
    """

    sent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    calls: list[tuple[str, int]] = dataclasses.field(default_factory=list)


def collectives(text: str) -> dict[str, int]:
    """Returns the bytes that each kind of collective leaves on a core in one run of the program.

    A collective in a loop counts once for each iteration if XLA knows the number of iterations, and otherwise once.

    Args:
      text: from `compiled.as_text()`.
    """
    computations, entry = _parse(text)
    total: collections.Counter[str] = collections.Counter()
    to_visit = [(entry, 1)]
    while to_visit:
        name, times = to_visit.pop()
        if name in computations:
            for kind, size in computations[name].sent.items():
                total[kind] += times * size
            to_visit += [(called, times * trips) for called, trips in computations[name].calls]
    return dict(total)


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns the computations of a program by name, and the name of the one where it starts."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations[found[1]] = _Computation()
            entry = found[1] if line.startswith("ENTRY") else entry
        elif current is not None:
            if found := _COLLECTIVE.search(line):
                current.sent[found[2]] += _result_bytes(found[1], found[2], bool(found[3]))
            trips = int(known[1]) if " while(" in line and (known := _TRIPS.search(line)) else 1
            called = _CALLED.findall(line)
            called += [name.strip(" %") for names in _BRANCHES.findall(line) for name in names.split(",")]
            current.calls += [(name, trips) for name in called]
    return computations, entry


def _result_bytes(types: str, kind: str, is_start: bool) -> int:
    """Returns the bytes of a collective's results.

    An asynchronous collective has two instructions. For most kinds, the type of the first, `-start`, lists the operands
    and then the results.
    """
    sizes = [_BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in _ARRAY.findall(types)]
    if is_start and kind == "collective-permute":
        return sizes[1]
    if is_start and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
