"""Compiles a step ahead of time and returns the compiler's numbers. The devices need not exist (`tpu_topology.py`)."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mixer.performance import hlo


class DoesNotFitError(Exception):
    """A program needs more memory than a core has.

    Attributes:
      needed: bytes that the program needs at least; None where XLA does not say.
    """

    def __init__(self, needed: float | None, words: str = "out of memory"):
        super().__init__(words)
        self.needed = needed


@contextlib.contextmanager
def memory_errors(beside: int = 0) -> Iterator[None]:
    """Raises DoesNotFitError in place of XLA's error for a lack of memory. XLA has it in compiling and in running.

    Args:
      beside: bytes of what else is on a core. They are needed, too.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
        needed = float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])) + beside if used else None
        raise DoesNotFitError(needed) from None


# The lowest clock in GHz that the compiler's two estimates of a program may imply. A config's step implies 0.65 to 3.59
# (docs/preflight.md), and what the seconds do not see (dropout, precision) only more. Below it, whole seconds are
# missing or too many.
_LOWEST_CLOCK = 0.3


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program. All numbers are for one core.

    Attributes:
      run: runs the program, if its devices exist.
      arguments: bytes of the arguments, including the padding to the chip's tiles.
      results: bytes of the results that are not stored in place of donated arguments.
      temporaries: bytes of activations, gradients and communication buffers.
      code: bytes of the program itself.
      flops: FLOPs of one run. Work that XLA repeats to save memory counts again.
      estimated_seconds: of one run, by the compiler's cost model. The model assumes that computing and copying overlap
        perfectly, so this is a lower bound and not a forecast. It knows neither the precision of products nor what
        random bits cost. None where the compiler has no estimate.
      estimated_cycles: of one run, the sum of those that the compiler writes beside instructions; 0 where it has none.
      collectives: bytes that each kind of collective carries, see `hlo.Costs`.
      compile_seconds: of the compilation, on this machine.
      beside: bytes of what else is on the core while the program runs.
    """

    run: Any
    arguments: int
    results: int
    temporaries: int
    code: int
    flops: float
    estimated_seconds: float | None
    estimated_cycles: int
    collectives: Mapping[str, int]
    compile_seconds: float
    beside: int = 0

    @property
    def total(self) -> int:
        """Bytes that must fit in the memory of a core."""
        return self.arguments + self.results + self.temporaries + self.code + self.beside


def compile_step(step: Any, *arguments: Any, beside: int = 0) -> Compiled:
    """Compiles a jitted function.

    Args:
      step: the function.
      *arguments: its arguments, as `jax.ShapeDtypeStruct`s with shardings.
      beside: bytes of what else is on a core while it runs.

    Raises:
      DoesNotFitError: the program needs more memory than a core has.
    """
    lowered = step.lower(*arguments)
    since = time.perf_counter()
    with memory_errors(beside):
        compiled = lowered.compile()
    seconds = time.perf_counter() - since
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    in_text = hlo.costs(compiled.as_text())
    return Compiled(
        run=compiled,
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost["flops"] * in_text.repeated_work,
        estimated_seconds=estimated_seconds(cost.get("optimal_seconds", 0.0), in_text),
        estimated_cycles=in_text.cycles,
        collectives=in_text.collectives,
        compile_seconds=seconds,
        beside=beside,
    )


def estimated_seconds(optimal_seconds: float, in_text: hlo.Costs) -> float | None:
    """Returns the seconds of one run from XLA's `optimal_seconds`; None if the compiler has no estimate.

    XLA counts -1 second for some instructions that take next to no time, and the body of a loop once. The iterations
    are added by the share of the body in the program's cycles.

    Args:
      optimal_seconds: of XLA's cost analysis.
      in_text: the costs of the same program.
    """
    once = optimal_seconds + in_text.missing_seconds
    if once <= 0:
        return None
    if in_text.cycles and in_text.cycles / in_text.repeated_cycles / once < _LOWEST_CLOCK * 1e9:
        return None
    return once * in_text.repeated_cycles
