"""What an evaluator is, and what all of them are built from."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import ml_collections
import numpy as np
from etils import epath, epy
from jax.sharding import Mesh

from mixer.data.sources import Source
from mixer.models import Model
from mixer.runtime import devices

with epy.lazy_imports():  # it imports TensorFlow, which checking a config must not do
    from mixer.data import pipeline, plain_images

_FEW = 2_000  # images; with more, the pipeline of TensorFlow is worth its import, as it uses all cores

Through = Callable[[Iterable[Any]], Iterable[Any]]
"""Passes batches on, of which it may ask the number (`len`).

It may end an evaluation by raising: this is how a run that is asked to stop abandons it.
"""


@runtime_checkable
class Evaluator(Protocol):
    """Computes metrics of any parameters of one model."""

    @property
    def num_examples(self) -> int:
        """Images that an evaluation reads."""

    @property
    def sources(self) -> Sequence[Source]:
        """The splits that it reads, of which the first is scored; several processes compare their data."""

    def __call__(self, params: Any, through: Through = iter) -> dict[str, float]:
        """Returns metrics by name. `params` may lie anywhere on the mesh."""


class Context(NamedTuple):
    """What an evaluator is built for.

    Attributes:
      model: the model whose parameters are evaluated.
      class_names: of the model's outputs, where they are known.
      loss: a key of `losses.LOSSES`.
      input: `config.input` of the run; its values are used where an evaluator's settings have none. Few-shot
        has its own crop, size before it and number of labels.
      mesh: where the model is computed.
      batch_size: images at a time, over all devices.
      cache_dir: keeps what has to be made for a dataset, such as an index.
      source: what messages call the model.
      light: whether few local images are decoded without TensorFlow, to the same pixels; its import takes longer.
      reading: passes on what an evaluator reads when it is built, and may show how far it is.
    """

    model: Model
    class_names: Sequence[str] | None
    loss: str
    input: ml_collections.ConfigDict
    mesh: Mesh
    batch_size: int
    cache_dir: epath.PathLike
    source: str = "the model"
    light: bool = False
    reading: Through = iter


def batch_size(config: ml_collections.ConfigDict) -> int:
    """Returns how many images a run evaluates at a time: as many as its training step holds at a time."""
    return int(config.batch_size // config.accumulate_steps)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a split, which can be counted before they are made."""

    made: Iterable[Any]
    number: int

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)


def total(of_batches: Iterable[Any]) -> Any:
    """Adds up sums of batches: float64 and int64 on the host, since float32 stops counting at 2^24 images.

    It reads the sums of a batch once the next ones are given, so that the devices need not wait for it.
    """
    found: Any = None
    for sums, _ in itertools.pairwise(itertools.chain(of_batches, [None])):
        wide = jax.tree.map(lambda x: np.array(x, x.dtype.kind + "8"), jax.device_get(sums))
        found = wide if found is None else jax.tree.map(lambda a, b: np.asarray(a + b), found, wide)
    return found


def split_batches(
    source: Source, config: ml_collections.ConfigDict, context: Context, through: Through = iter,
    records: np.ndarray | None = None,
) -> Iterator[dict[str, jax.Array]]:  # fmt: skip
    """Yields every example of a split once, in batches that lie on the mesh; see `pipeline.eval_batches`."""
    rows = devices.host_rows(context.mesh, context.batch_size)
    light = context.light and source.num_examples <= _FEW and not source.remote
    make = plain_images.eval_batches if light else pipeline.eval_batches
    batches = make(source, config, batch_size=context.batch_size, rows=rows, records=records)
    number = math.ceil((source.num_examples if records is None else len(records)) / context.batch_size)
    for batch in through(Batches(batches, number)):
        yield devices.to_devices(batch, context.mesh)
