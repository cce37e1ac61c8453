"""Whether a config's programs fit the memory of a core, what would make them fit, and how large a batch could be."""

from collections.abc import Callable
from typing import Any

import ml_collections
from jax.sharding import Mesh

from mixer.config import checks
from mixer.performance import compiling, tpu_topology
from mixer.runtime.errors import UserError
from mixer.training import sharding

# What may make a program fit, each tried by itself, then together.
REMEDIES: tuple[dict[str, Any], ...] = (
    {"model.remat": True},
    {"sharding": "fully_sharded"},
    {"accumulate_steps": 2},
    {"accumulate_steps": 4},
    {"model.remat": True, "sharding": "fully_sharded"},
    {"model.remat": True, "sharding": "fully_sharded", "accumulate_steps": 4},
)

_ENOUGH = 64  # images on a core: of smaller batches, what does not grow with the batch hides what does
_ATTEMPTS, _STEP_BACK = 4, 0.8  # at the largest batch, and how much smaller the next is


class Fitting:
    """One config on one slice, compiled as often as its questions need."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        num_classes: int,
        max_labels: int,
        memory: float,
        tell: Callable[[str], None] = lambda line: None,
    ):
        """Takes a checked config; `memory` is what a core has, bytes."""
        self.config, self.mesh, self.memory, self.tell = config, mesh, memory, tell
        self._data = (num_classes, max_labels)
        self.needed: float | None = None  # bytes that the last program that did not fit would take, if XLA said

    def train(self, **changes: Any) -> compiling.Compiled | None:
        """The training step of the config with some settings changed; None if it does not fit."""
        config = ml_collections.ConfigDict(self.config)
        config.update_from_flattened_dict(changes)
        config = checks.checked(config)
        sharding.check_divides(config, self.mesh)
        named = ", ".join(f"{name}={value}" for name, value in changes.items()) or "as it is"
        try:
            compiled = tpu_topology.compile_train(config, self.mesh, *self._data)
        except compiling.DoesNotFitError as error:
            self.needed = error.needed
            self.tell(f"compiled the training step, {named}: does not fit")
            return None
        self.needed = compiled.total
        fits = compiled.total <= self.memory
        self.tell(
            f"compiled the training step, {named}: {compiled.total / 2**30:.2f} GiB, {compiled.compile_seconds:.0f} s"
        )
        return compiled if fits else None

    def evaluate(self) -> compiling.Compiled:
        """The evaluation step, which needs less than training does."""
        compiled = tpu_topology.compile_eval(self.config, self.mesh, *self._data)
        self.tell(f"compiled the evaluation step: {compiled.total / 2**30:.2f} GiB, {compiled.compile_seconds:.0f} s")
        return compiled

    def remedies(self) -> list[dict[str, Any]]:
        """Compiles each of REMEDIES until some have been found to do; those that change nothing are left out."""
        found: list[dict[str, Any]] = []
        for changes in REMEDIES:
            flat = checks.flat(self.config)
            new = {name: value for name, value in changes.items() if flat[name] != value}
            if len(new) < len(changes) or (len(new) > 1 and any(remedy["fits"] for remedy in found)):
                continue
            try:
                compiled = self.train(**new)
            except UserError as error:  # the batch does not divide so
                self.tell(str(error))
                continue
            named = " ".join(f"--config.{name}={value}" for name, value in new.items())
            found.append({"change": named, "fits": compiled is not None, "total": self.needed})
        return found

    def largest(self, compiled: compiling.Compiled) -> dict[str, Any] | None:
        """The largest batch on a core that should fit: memory as a straight line through two, checked by a third.

        XLA fits more by recomputing activations; `extra_work` is the share of FLOPs that an image then takes beyond
        those in the batch as it is. None where even twice the batch is too much.

        Args:
          compiled: the training step as it is.
        """
        unit = sharding.rows_together(self.config) * self.config.accumulate_steps
        per_core = self.config.batch_size // self.mesh.size
        larger = max(2 * per_core, _ENOUGH // unit * unit)
        last = self.train(batch_size=larger * self.mesh.size)
        if last is None:
            return None
        slope = (last.total - compiled.total) / (larger - per_core)
        guess = per_core + (self.memory - compiled.total) / slope if slope > 0 else 0
        for _ in range(_ATTEMPTS):
            images = int(guess) // unit * unit
            if images <= larger:
                break
            if checked := self.train(batch_size=images * self.mesh.size):
                extra = checked.flops / images / (compiled.flops / per_core) - 1
                return {"per_core": images, "total": checked.total, "extra_work": extra}
            guess *= _STEP_BACK
        extra = last.flops / larger / (compiled.flops / per_core) - 1
        return {"per_core": larger, "total": last.total, "extra_work": extra}
