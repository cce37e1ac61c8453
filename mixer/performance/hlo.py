"""Reads the text of a compiled XLA program: what its collectives carry, its cycles, and what its loops repeat."""

import collections
import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\(([^)]*)\)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_INDEX = re.compile(r"\), index=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONVOLVED = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip

# For each of these, XLA's cost model of a TPU adds -1 second to `optimal_seconds` (libtpu 0.0.42.1). Those of X64 come
# with rng-bit-generator. It adds nothing for AllocateBuffer.
_MINUS_ONE_SECOND = re.compile(r'custom_call_target="(?:ConcatBitcast|PrepareAsyncCall\w+|X64\w+)"')
_SCATTERING = "all-reduce-scatter"  # the name of a computation that leaves a part of its all-reduce on each core


class Costs(NamedTuple):
    """What one run of a program costs on a core.

    Attributes:
      collectives: bytes of the whole arrays that each kind of collective reduces, gathers or scatters. An all-reduce
        sends and receives about twice as much on each core, the others about as much.
      cycles: that the compiler estimates for its instructions; 0 where it writes none, which is so for all but TPUs.
      repeated_work: FLOPs of the matrix products with all iterations of loops, over FLOPs with one iteration of each.
      repeated_cycles: the same for cycles.
      missing_seconds: seconds by which the compiler's cost model falls short.
    """

    collectives: dict[str, int]
    cycles: int
    repeated_work: float
    repeated_cycles: float
    missing_seconds: int


@dataclasses.dataclass
class _Computation:
    """One computation of a program; XLA's word for a function.

    Attributes:
      costs: "cycles", "products" (FLOPs), and bytes by kind of collective, without those of the computations it calls.
      calls: names of the computations that it calls, and how often: a number, or for a loop the names of its condition
        and body.
      shapes: of its instructions, as XLA writes their types.
      constants: values of its integer constants.
      indices: of the arguments that its instructions read.
      sums: names of what its additions add.
      root: names of what its last instruction reads.
      compares: whether the last instruction is whether the first of these is less than the second.
    """

    costs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    calls: list[tuple[str, int | tuple[str, str]]] = dataclasses.field(default_factory=list)
    shapes: dict[str, str] = dataclasses.field(default_factory=dict)
    constants: dict[str, int] = dataclasses.field(default_factory=dict)
    indices: dict[str, int] = dataclasses.field(default_factory=dict)
    sums: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    root: list[str] = dataclasses.field(default_factory=list)
    compares: bool = False


def costs(text: str) -> Costs:
    """Returns the costs of one run of a program.

    A loop that counts to a constant, as those of `jax.lax.scan` do, is counted with all its iterations, another loop
    with one.

    Args:
      text: from `compiled.as_text()`.
    """
    computations, entry = _parse(text)
    once, all_ = _total(computations, entry, loops=False), _total(computations, entry, loops=True)
    return Costs(
        collectives={kind: all_[kind] for kind in _COLLECTIVES if all_[kind]},
        cycles=all_["cycles"],
        repeated_work=all_["products"] / once["products"] if once["products"] else 1.0,
        repeated_cycles=all_["cycles"] / once["cycles"] if once["cycles"] else 1.0,
        missing_seconds=len(_MINUS_ONE_SECOND.findall(text)),
    )


def _total(computations: dict[str, _Computation], entry: str, loops: bool) -> collections.Counter[str]:
    """Returns the costs of a program, with all iterations of counting loops or with one."""
    total: collections.Counter[str] = collections.Counter()
    to_visit = [(entry, 1)]
    while to_visit:
        name, times = to_visit.pop()
        if name in computations:
            for kind, size in computations[name].costs.items():
                total[kind] += times * size
            for called, runs in computations[name].calls:
                trips = runs if isinstance(runs, int) else _trips(*(computations.get(part) for part in runs))
                to_visit.append((called, times * trips if loops else times))
    return total


def _trips(condition: _Computation | None, body: _Computation | None) -> int:
    """Returns the iterations of a loop that counts from 0 to a constant, and 1 for another.

    XLA may do several of JAX's iterations in one and count by more than 1.
    """
    if not condition or not body or not condition.compares or len(condition.root) != 2:
        return 1
    counter, limit = condition.indices.get(condition.root[0]), condition.constants.get(condition.root[1])
    if counter is None or limit is None or counter >= len(body.root):
        return 1
    step = [body.constants[part] for part in body.sums.get(body.root[counter], []) if part in body.constants]
    return math.ceil(limit / step[0]) if step and step[0] > 0 else 1


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns the computations of a program by name, and the name of the one where it starts."""
    computations: dict[str, _Computation] = {}
    entry, name, current = "", "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            current = computations[name] = _Computation()
            entry = name if line.startswith("ENTRY") else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            _add(current, name, line, found)
    return computations, entry


def _add(current: _Computation, computation: str, line: str, found: re.Match[str]) -> None:
    """Adds an instruction to its computation."""
    is_root, name, types, opcode, operands = found.groups()
    current.shapes[name] = types
    factors = re.findall(r"%([\w.-]+)", operands)
    if opcode == "constant" and operands.isdigit():
        current.constants[name] = int(operands)
    if opcode == "get-tuple-element" and (index := _INDEX.search(line)):
        current.indices[name] = int(index[1])
    if opcode == "add":
        current.sums[name] = factors
    if is_root:
        current.root, current.compares = factors, opcode == "compare" and "direction=LT" in line
    if cycles := _CYCLES.search(line):
        current.costs["cycles"] += int(cycles[1])
    if opcode in ("convolution", "dot"):
        current.costs["products"] += _product_flops(line, opcode, types, [current.shapes.get(name) for name in factors])
    kind, is_start = opcode.removesuffix("-start"), opcode.endswith("-start")
    if kind in _COLLECTIVES:
        if kind == "reduce-scatter":
            size = sum(sum(_sizes(current.shapes.get(factor, ""))) for factor in factors)
        else:
            size = _result_bytes(types, kind, is_start)
        scatters = kind == "all-reduce" and computation.startswith(_SCATTERING)
        current.costs["reduce-scatter" if scatters else kind] += size
    called = _CALLED.findall(line)
    called += [name.strip(" %") for names in _BRANCHES.findall(line) for name in names.split(",")]
    runs: int | tuple[str, str] = 1
    if opcode == "while" and (known := _TRIPS.search(line)):
        runs = int(known[1])
    elif opcode == "while" and len(called) == 2:
        runs = called[0], called[1]  # XLA writes the condition before the body
    current.calls += [(name, runs) for name in called]


def _product_flops(line: str, opcode: str, types: str, factors: list[str | None]) -> int:
    """Returns the FLOPs of a matrix product or convolution, 0 where its factors are not known.

    libtpu writes products of many matrices as convolutions, most of whose taps fall on padding or between the elements
    of a dilated factor. Only taps on an element count, as in XLA's own cost model.
    """
    arrays = [_arrays(text or "")[:1] for text in (types, *factors[:2])]
    if len(arrays) < 3 or not all(arrays):
        return 0
    result, left, right = (shape for ((_, shape),) in arrays)
    if opcode == "dot":
        axes = _CONTRACTED.search(line)
        summed = math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1
        return 2 * math.prod(result) * summed
    if not (found := _CONVOLVED.search(line)):
        return 0
    of_left, of_right, of_result = found.groups()
    window = _WINDOW.search(line)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    products = result[of_result.index("b")] * result[of_result.index("f")] * right[of_right.index("i")]
    for axis in range(len(of_left) - 2):
        name = str(axis)
        given = {key: value.split("x")[axis] for key, value in settings.items()}
        products *= _taps(
            left[of_left.index(name)], result[of_result.index(name)], right[of_right.index(name)],
            stride=int(given.get("stride", 1)), pad=int(given.get("pad", "0_0").split("_")[0]),
            dilation=int(given.get("lhs_dilate", 1)), spread=int(given.get("rhs_dilate", 1)),
        )  # fmt: skip
    return 2 * products


@functools.cache
def _taps(elements: int, results: int, size: int, *, stride: int, pad: int, dilation: int, spread: int) -> int:
    """Returns how many pairs of a result and a tap of its window, along one axis, meet an element.

    Args:
      elements: along this axis of what is convolved.
      results: along this axis of the result.
      size: taps of the window.
      stride: from the window of a result to that of the next.
      pad: places before the first element.
      dilation: from an element to the next.
      spread: from a tap to the next.
    """
    count = 0
    for result in range(results):
        places = range(result * stride - pad, result * stride - pad + size * spread, spread)
        count += sum(place % dilation == 0 for place in places if 0 <= place <= (elements - 1) * dilation)
    return count


def _arrays(types: str) -> list[tuple[str, list[int]]]:
    """Returns the type and shape of each array in an instruction's type."""
    return [(dtype, [int(n) for n in shape.split(",") if n]) for dtype, shape in _ARRAY.findall(types)]


def _sizes(types: str) -> list[int]:
    """Returns the bytes of each array in an instruction's type."""
    return [_BYTES[dtype] * math.prod(shape) for dtype, shape in _arrays(types)]


def _result_bytes(types: str, kind: str, is_start: bool) -> int:
    """Returns the bytes of a collective's results.

    An asynchronous collective has two instructions. For most kinds, the type of the first, `-start`, lists the operands
    and then the results.
    """
    sizes = _sizes(types)
    if is_start and kind == "collective-permute":
        return sizes[1]
    if is_start and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
