"""Whether a config's steps fit in the memory of a core, what would make them fit, and which batches fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from jax.sharding import Mesh

from mixer.config import checks
from mixer.performance import compiling, tpu_topology
from mixer.runtime.errors import UserError
from mixer.training import sharding

# Changes of settings that save memory: first each by itself, then several together.
REMEDIES: tuple[dict[str, Any], ...] = (
    {"model.remat": True},
    {"sharding": "fully_sharded"},
    {"accumulate_steps": 2},
    {"accumulate_steps": 4},
    {"model.remat": True, "sharding": "fully_sharded"},
    {"model.remat": True, "sharding": "fully_sharded", "accumulate_steps": 4},
)

# Minimum number of images on a core in the second of the batches that `batches` tries. In smaller batches, the memory
# that does not depend on the batch size hides the memory that does.
_ENOUGH = 64
_LARGEST = 8192  # images on a core
_CLOSE = 1.2  # the largest batch that fits is known well enough if one this many times as large does not fit


class Batch(NamedTuple):
    """A batch that fits.

    Attributes:
      per_core: images on a core.
      total: bytes that the step needs.
      extra_work: FLOPs for an image beyond those of the config's batch, as a share. It is above zero where XLA
        recomputes activations to save memory.
      images_per_sec_per_core: by the compiler's estimate; None if it has none.
    """

    per_core: int
    total: int
    extra_work: float
    images_per_sec_per_core: float | None


class Fitting:
    """Compiles one config for one slice, with several settings, and compares the memory with that of a core.

    Attributes:
      needed: bytes that the last compiled training step needs. None before the first; and where it does not compile for
        lack of memory and XLA does not say how much it needs.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        num_classes: int,
        max_labels: int,
        memory: float,
        tell: Callable[[str], None] = lambda line: None,
    ):
        """Compiles nothing yet.

        Args:
          config: of the run, checked.
          mesh: of the slice.
          num_classes: width of the head.
          max_labels: labels of an example, at most.
          memory: bytes of a core.
          tell: called with a line after each compilation.
        """
        self.config, self.mesh, self.memory, self.tell = config, mesh, memory, tell
        self._data = (num_classes, max_labels)
        self.needed: float | None = None

    def train(self, **changes: Any) -> compiling.Compiled | None:
        """Compiles the training step with some settings changed; returns None if it does not fit.

        Raises:
          UserError: the batch cannot be divided with these settings.
        """
        config = checks.unlocked_copy(self.config)
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
        self.tell(
            f"compiled the training step, {named}: {compiled.total / 2**30:.2f} GiB, {compiled.compile_seconds:.0f} s"
        )
        return compiled if compiled.total <= self.memory else None

    def evaluate(self) -> compiling.Compiled:
        """Compiles the evaluation step. It needs less memory than the training step, so it fits if that does."""
        compiled = tpu_topology.compile_eval(self.config, self.mesh, *self._data)
        self.tell(f"compiled the evaluation step: {compiled.total / 2**30:.2f} GiB, {compiled.compile_seconds:.0f} s")
        return compiled

    def remedies(self) -> list[dict[str, Any]]:
        """Compiles the training step with each of `REMEDIES`, and returns for each the change and whether it fits.

        A remedy is left out if the config has one of its settings already, or if the batch cannot be divided with it.
        Settings are changed together only if none of them suffices by itself.
        """
        found: list[dict[str, Any]] = []
        now = checks.flat(self.config)
        for changes in REMEDIES:
            has_one_already = any(now[name] == value for name, value in changes.items())
            if has_one_already or (len(changes) > 1 and any(remedy["fits"] for remedy in found)):
                continue
            try:
                compiled = self.train(**changes)
            except UserError as error:
                self.tell(str(error))
                continue
            named = " ".join(f"--config.{name}={value}" for name, value in changes.items())
            found.append({"change": named, "fits": compiled is not None, "total": self.needed})
        return found

    def batches(self, compiled: compiling.Compiled) -> list[Batch]:
        """Returns the batches that were found to fit, beginning with the config's own; the largest is the last.

        The memory of two batches gives a straight line, and the line gives a third to try. As XLA saves memory where it
        is short, larger ones may fit too: batches are doubled until one does not fit, and the gap is halved until it is
        small. That takes four to eight compilations. Nothing above 8,192 images is tried.

        Args:
          compiled: the training step of the config's batch.
        """
        # A batch on a core must be a multiple of this.
        unit = sharding.rows_together(self.config) * self.config.accumulate_steps
        per_core = self.config.batch_size // self.mesh.size
        fitting = {per_core: compiled}
        too_large = _LARGEST

        def fits(images: int) -> bool:
            nonlocal too_large
            found = self.train(batch_size=images * self.mesh.size)
            if found is None:
                too_large = images
                return False
            fitting[images] = found
            return True

        second = max(2 * per_core, _ENOUGH // unit * unit)
        if second < _LARGEST and fits(second):
            slope = (fitting[second].total - compiled.total) / (second - per_core)
            on_line = int(per_core + (self.memory - compiled.total) / slope) if slope > 0 else 0
            if second < on_line // unit * unit < _LARGEST:
                fits(on_line // unit * unit)
        while too_large == _LARGEST and 2 * max(fitting) < _LARGEST:
            fits(2 * max(fitting))
        while too_large != _LARGEST and too_large > _CLOSE * max(fitting):
            middle = (max(fitting) + too_large) // 2 // unit * unit
            if middle in (max(fitting), too_large):
                break
            fits(middle)
        return [_batch(images, fitting[images], compiled.flops / per_core) for images in sorted(fitting)]


def _batch(images: int, compiled: compiling.Compiled, flops_of_an_image: float) -> Batch:
    seconds = compiled.estimated_seconds
    return Batch(
        per_core=images,
        total=compiled.total,
        extra_work=compiled.flops / images / flops_of_an_image - 1,
        images_per_sec_per_core=images / seconds if seconds else None,
    )
