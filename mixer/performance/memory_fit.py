"""Whether a config's steps fit in the memory of a core, what would make them fit, and which batches fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from jax.sharding import Mesh

from mixer.config import checks
from mixer.performance import compiling, tpu_topology
from mixer.runtime.errors import UserError
from mixer.training import sharding

# Minimum number of images on a core in the second of the batches that `batches` tries. In smaller batches, the memory
# that does not depend on the batch size hides the memory that does.
_ENOUGH = 64
_LARGEST = 8192  # images on a core, of the batches that are tried
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
      needed: bytes that the last compiled step needs, with what else is on the core. None before the first; and where
        it does not compile for lack of memory and XLA does not say how much it needs.
      too_large: images on a core of the smallest batch that `batches` found not to fit; None if all that it tried do.
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
        self._data, self._several_labels = (num_classes, max_labels), max_labels > 1
        self.needed: float | None = None
        self.too_large: int | None = None

    def train(self, **changes: Any) -> compiling.Compiled | None:
        """Compiles the training step with some settings changed; returns None if it does not fit.

        Raises:
          UserError: the batch cannot be divided with these settings.
        """
        return self._compiled(tpu_topology.compile_train, "training step", changes)

    def evaluate(self, **changes: Any) -> compiling.Compiled | None:
        """Compiles the evaluation step as `train` does the training step."""
        return self._compiled(tpu_topology.compile_eval, "evaluation step", changes)

    def _steps(self, **changes: Any) -> compiling.Compiled | None:
        """Compiles what may not fit with some settings changed; returns the training step, or None if it does not fit.

        With one label an image, the training step needs the most. With several, each core holds the logits of the whole
        batch in evaluation.
        """
        trained = self.train(**changes)
        if trained is None or not self._several_labels:
            return trained
        if self.evaluate(**changes) is None:
            return None
        self.needed = trained.total
        return trained

    def _compiled(
        self, compile_step: Callable[..., compiling.Compiled], step: str, changes: dict[str, Any]
    ) -> compiling.Compiled | None:
        config = checks.unlocked_copy(self.config)
        config.update_from_flattened_dict(changes)
        config = checks.checked(config)
        sharding.check_divides(config, self.mesh)
        name = ", ".join([step, *(f"{name}={value}" for name, value in changes.items())])
        try:
            compiled = compile_step(config, self.mesh, *self._data)
        except compiling.DoesNotFitError as error:
            self.needed = error.needed
            self.tell(f"compiled the {name}: does not fit")
            return None
        self.needed = compiled.total
        self.tell(f"compiled the {name}: {compiled.total / 2**30:.2f} GiB, {compiled.compile_seconds:.0f} s")
        return compiled if compiled.total <= self.memory else None

    def remedies(self) -> list[dict[str, Any]]:
        """Compiles the steps with settings that save memory; returns each change and whether it fits.

        A change is left out if the batch cannot be divided with it. Settings are changed together only if none of them
        suffices by itself.
        """
        found: list[dict[str, Any]] = []
        for changes in _remedies(checks.flat(self.config)):
            if len(changes) > 1 and any(remedy["fits"] for remedy in found):
                continue
            try:
                compiled = self._steps(**changes)
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
        small. That takes four to eight compilations. Nothing above 8,192 images is tried; `too_large` is then None.

        Args:
          compiled: the training step of the config's batch, whose evaluation fits too.
        """
        # A batch on a core must be a multiple of this.
        unit = sharding.rows_together(self.config) * self.config.accumulate_steps
        per_core = self.config.batch_size // self.mesh.size
        most = _LARGEST // unit * unit
        fitting = {per_core: compiled}
        self.too_large = None

        def fits(images: int) -> bool:
            found = self._steps(batch_size=images * self.mesh.size)
            if found is None:
                self.too_large = images
                return False
            fitting[images] = found
            return True

        second = max(2 * per_core, _ENOUGH // unit * unit)
        if second <= most and fits(second):
            slope = (fitting[second].total - compiled.total) / (second - per_core)
            on_line = int(per_core + (self.memory - compiled.total) / slope) // unit * unit if slope > 0 else 0
            if on_line > second:
                fits(min(on_line, most))
        while self.too_large is None and max(fitting) < most:
            fits(min(2 * max(fitting), most))
        while self.too_large is not None and self.too_large > _CLOSE * max(fitting):
            middle = (max(fitting) + self.too_large) // 2 // unit * unit
            if middle in (max(fitting), self.too_large):
                break
            fits(middle)
        return [_batch(images, fitting[images], compiled.flops / per_core) for images in sorted(fitting)]


def _remedies(now: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns changes of settings that save memory: first each by itself, then several together.

    Args:
      now: the present settings, by dotted name. What they have already is in no change.
    """
    twice, four_times = ({"accumulate_steps": times * now["accumulate_steps"]} for times in (2, 4))
    remat, sharded = {"model.remat": True}, {"sharding": "fully_sharded"}
    found: list[dict[str, Any]] = []
    for settings in (remat, sharded, twice, four_times, remat | sharded, remat | sharded | four_times):
        changes = {name: value for name, value in settings.items() if now[name] != value}
        if changes and changes not in found:
            found.append(changes)
    return found


def _batch(images: int, compiled: compiling.Compiled, flops_of_an_image: float) -> Batch:
    seconds = compiled.estimated_seconds
    return Batch(
        per_core=images,
        total=compiled.total,
        extra_work=compiled.flops / images / flops_of_an_image - 1,
        images_per_sec_per_core=images / seconds if seconds else None,
    )
