"""Compiles a step ahead of time, for devices that are there or not, and keeps what the compiler says of it."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mixer.performance import hlo


class DoesNotFitError(Exception):
    """A program needs more memory than a core has; at least `needed` bytes, or None where nobody says."""

    def __init__(self, needed: float | None, words: str = "out of memory"):
        super().__init__(words)
        self.needed = needed


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Raises DoesNotFitError where XLA, compiling or running, finds no room."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
        raise DoesNotFitError(float(used[1]) * 1024 ** (1 + "KMGT".index(used[2])) if used else None) from None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, all figures for one core.

    Attributes:
      run: calls it, where its devices are there.
      arguments: bytes, with the padding of the chip's tiles.
      results: bytes that do not take the place of arguments.
      temporaries: bytes: activations, gradients, what is on its way.
      code: bytes of the program.
      flops: of one run; what XLA recomputes to save memory counts again.
      estimated_seconds: by the compiler's cost model, for perfect overlap: a lower bound rather than a forecast. None
        where the compiler has no estimate.
      collectives: bytes by kind.
      compile_seconds: on this machine.
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
        """Bytes that have to fit."""
        return self.arguments + self.results + self.temporaries + self.code


def compile_step(step: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function for arguments given by their shapes and shardings.

    Raises:
      DoesNotFitError: it needs more memory than a core has.
    """
    lowered = step.lower(*arguments)
    since = time.perf_counter()
    with out_of_memory():
        compiled = lowered.compile()
    seconds = time.perf_counter() - since
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    estimated = cost.get("optimal_seconds", 0.0)  # below zero where the compiler has none, as for v4, v5e and v6e
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
