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
def memory_errors() -> Iterator[None]:
    """Raises DoesNotFitError in place of XLA's error for a lack of memory. XLA has it in compiling and in running."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
        raise DoesNotFitError(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])) if used else None) from None


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
        perfectly, so this is a lower bound and not a forecast. None where the compiler has no estimate.
      collectives: bytes that each kind of collective leaves on the core, see `hlo.collectives`.
      compile_seconds: of the compilation, on this machine.
    """

    run: Any
    arguments: int
    results: int
    temporaries: int
    code: int
    flops: float
    estimated_seconds: float | None
    collectives: Mapping[str, int]
    compile_seconds: float

    @property
    def total(self) -> int:
        """Bytes that must fit in the memory of a core."""
        return self.arguments + self.results + self.temporaries + self.code


def compile_step(step: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function.

    Args:
      step: the function.
      *arguments: its arguments, as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      DoesNotFitError: the program needs more memory than a core has.
    """
    lowered = step.lower(*arguments)
    since = time.perf_counter()
    with memory_errors():
        compiled = lowered.compile()
    seconds = time.perf_counter() - since
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    estimated = cost.get("optimal_seconds", 0.0)  # negative where there is no estimate: TPU v4, v5e, v6e
    return Compiled(
        run=compiled,
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        estimated_seconds=estimated if estimated > 0 else None,
        collectives=hlo.collectives(compiled.as_text()),
        compile_seconds=seconds,
    )
