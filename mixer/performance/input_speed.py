"""Measures how fast this host makes training batches, stage by stage, and compares that with decoding alone.

Each stage is the pipeline of training, cut off after that stage. It runs on all cores of the host:

    read              records are read and their headers examined
    decode and crop   images have the model's size
    augment           images are what `augment.train_image` returns
    batch             batches are what `pipeline.train_batches` yields
    copy              batches are on the devices
    decoding alone    the decoder with images and crop windows that are in memory: no reading, no resizing

The own cost of a stage is its time for an image minus that of the stage before, multiplied by the number of cores. A
stage costs nothing in this sense if it uses only cores that the stages before leave idle. They leave some idle because
reading is mostly Python, and only one thread runs Python at a time.
"""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from mixer.data import pipeline, readers, sources
from mixer.data.pixels import augment
from mixer.data.tensorflow import tf
from mixer.runtime import devices

_ALONE = "decoding alone"
# Images in memory for decoding alone, rounded up to whole batches. The mean cost of this many images is known to a few
# per cent.
_KEPT = 2048
# Steps from the start of one block to the start of the next, far apart, in different epochs. Of a dataset that the
# host's memory holds, a later block finds records in the system's cache, as a run does from its second epoch on. The
# number is prime, so that each block of decoding alone starts at a different image.
_BETWEEN = 1_000_003


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images/s: the median over the blocks, the slowest block and the fastest block."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """The result of a measurement.

    Attributes:
      host_cores: how many cores this process may use.
      devices: how many devices this host has.
      device_kind: JAX's name for them.
      batch_rows: this host's rows of a batch.
      images_per_block: images in the shortest timed block.
      stages: rate by stage, in the order of the pipeline. Each stage includes those before it, so the last is the whole
        pipeline.
      decoding_alone: the rate of decoding alone, an upper bound.
    """

    host_cores: int
    devices: int
    device_kind: str
    batch_rows: int
    images_per_block: int
    stages: dict[str, Rate]
    decoding_alone: Rate

    @property
    def whole(self) -> Rate:
        """Rate of the whole pipeline."""
        return self.stages[list(self.stages)[-1]]

    @property
    def share_of_bound(self) -> float:
        """Rate of the whole pipeline, divided by that of decoding alone."""
        return self.whole.median / self.decoding_alone.median

    def core_microseconds(self) -> dict[str, float]:
        """Returns the own cost of each stage for an image, in microseconds of one host core."""
        costs = [0.0, *(1e6 * self.host_cores / rate.median for rate in self.stages.values())]
        return {name: cost - less for name, (less, cost) in zip(self.stages, itertools.pairwise(costs), strict=True)}

    def cores_needed(self, rate: float) -> int:
        """Returns how many host cores like these make `rate` images/s.

        This assumes that the rate is proportional to the number of cores. Do not trust it far beyond the rate of
        `read`, since that is mostly one thread of Python.
        """
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}; it must be a finite number above 0, in images/s")
        return math.ceil(rate * self.host_cores / self.whole.median)

    def as_dict(self) -> dict[str, Any]:
        """Returns all results, for JSON."""
        derived = {"share_of_bound": self.share_of_bound, "core_microseconds": self.core_microseconds()}
        return {**dataclasses.asdict(self), **derived}

    def table(self) -> str:
        """Returns a table for people, with a line for each stage and for decoding alone."""
        costs = self.core_microseconds() | {_ALONE: 1e6 * self.host_cores / self.decoding_alone.median}
        lines = [("", "images/s", "per host core", "least-most", "own core-us/image")]
        for name, rate in (self.stages | {_ALONE: self.decoding_alone}).items():
            label = name if name == _ALONE or len(lines) == 1 else f"+ {name}"
            numbers = (f"{rate.median:,.0f}", f"{rate.median / self.host_cores:,.0f}")
            lines.append((label, *numbers, f"{rate.least:,.0f}-{rate.most:,.0f}", f"{costs[name]:,.0f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = "  ".join(f"{{:{'>' if column else '<'}{width}}}" for column, width in enumerate(widths))
        about = (
            f"{self.host_cores} host cores, {self.devices} x {self.device_kind}; {self.batch_rows:,} images a batch, "
            f"{self.images_per_block:,} or more a block"
        )
        share = f"the whole pipeline: {self.share_of_bound:.0%} of the rate of decoding alone"
        return "\n".join([about, *(aligned.format(*line) for line in lines), share])


def measure(
    config: ml_collections.ConfigDict, cache_dir: epath.PathLike, host_cores: int, *, seconds: float = 2.0,
    blocks: int = 5,
) -> InputSpeed:  # fmt: skip
    """Measures the training input of a run on this host. This takes a little more than 12 * seconds * blocks.

    Args:
      config: of the run, checked.
      cache_dir: keeps files that are made for the dataset, such as an index.
      host_cores: how many cores this process may use.
      seconds: minimum length of a block. A block is whole batches. Before it is timed, it warms up for as long.
      blocks: how many timed blocks each stage has.

    Raises:
      UserError: the dataset cannot be opened or read, or the devices do not divide the batch.
    """
    mesh = devices.make_mesh()
    rows = devices.host_rows(mesh, config.batch_size)
    count = rows.stop - rows.start
    source = readers.open_source(config.input, config.input.train_split, cache_dir)
    feeds = _feeds(source, config, mesh, rows)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in feeds}
    # The stages take turns, so that a drift of the machine's speed affects all of them alike.
    for block in range(blocks):
        for turn, (name, feed) in enumerate(feeds.items()):
            first = (block * len(feeds) + turn) * _BETWEEN
            found[name].append(_timed(feed(range(first, first + _BETWEEN)), seconds))
    rates = {name: [count * batches / elapsed for batches, elapsed in timed] for name, timed in found.items()}
    summary = {name: Rate(statistics.median(each), min(each), max(each)) for name, each in rates.items()}
    return InputSpeed(
        host_cores=host_cores,
        devices=jax.local_device_count(),
        device_kind=jax.local_devices()[0].device_kind,
        batch_rows=count,
        images_per_block=count * min(batches for timed in found.values() for batches, _ in timed),
        stages={name: rate for name, rate in summary.items() if name != _ALONE},
        decoding_alone=summary[_ALONE],
    )


Feed = Callable[[range], Iterator[Any]]

# The stages that process groups of examples, each as a function of (groups, `config.input`).
_STAGES: dict[str, Callable[[tf.data.Dataset, ml_collections.ConfigDict], tf.data.Dataset]] = {
    "read": lambda examples, config: examples,
    "decode and crop": lambda examples, config: pipeline.train_images(examples, config, augmented=False),
    "augment": pipeline.train_images,
}


def _feeds(
    source: sources.Source, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, rows: slice
) -> dict[str, Feed]:
    """Returns a function for each stage, from a range of steps to an iterator that has one item for each step.

    Args:
      source: the training split.
      config: of the run.
      mesh: the devices.
      rows: this host's rows of a batch.
    """
    of_run = {"seed": config.seed, "batch_size": config.batch_size, "rows": rows}
    count = rows.stop - rows.start

    def feed_of(stage: str) -> Feed:
        def dataset(steps: range, verify: bool) -> tf.data.Dataset:
            examples = pipeline.train_examples(source, config.input, **of_run, steps=steps, verify=verify)
            return _last_of_each(_STAGES[stage](examples, config.input), count // pipeline.group_size(examples))

        return lambda steps: pipeline.batches_of(dataset, steps)

    def decoded(steps: range, verify: bool) -> tf.data.Dataset:
        return _last_of_each(_decoded(kept, range(steps.start * count, steps.stop * count), config.input), count)

    def batches(steps: range) -> Iterator[pipeline.Batch]:
        return pipeline.train_batches(source, config.input, **of_run, steps=steps)

    kept = _kept(source, config, rows)
    return {
        **{stage: feed_of(stage) for stage in _STAGES},
        "batch": batches,
        "copy": lambda steps: map(jax.block_until_ready, devices.device_batches(batches(steps), mesh)),
        _ALONE: lambda steps: pipeline.batches_of(decoded, steps),
    }


def _kept(source: sources.Source, config: ml_collections.ConfigDict, rows: slice) -> dict[str, tf.Tensor]:
    """Reads the first images of a run: bytes, crop windows and the other items of `pipeline.train_examples`."""
    count = rows.stop - rows.start
    steps = range(math.ceil(_KEPT / count))
    examples = pipeline.train_examples(
        source, config.input, seed=config.seed, batch_size=config.batch_size, rows=rows, steps=steps, verify=True
    )
    in_one_batch = pipeline.batched(examples, count * len(steps))
    one_batch = next(pipeline.batches_of(lambda *_: in_one_batch, steps))
    kept: dict[str, tf.Tensor] = jax.tree.map(tf.constant, one_batch)
    return kept


def _last_of_each(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """Returns the last of every `count` elements. All are computed, but the others cost no copying to Python."""
    return dataset.shard(count, count - 1)


def _decoded(kept: dict[str, tf.Tensor], numbers: range, config: ml_collections.ConfigDict) -> tf.data.Dataset:
    """Decodes the crop windows of kept images in a cycle: uint8 [height, width, 3].

    Args:
      kept: from `_kept`.
      numbers: positions in the cycle.
      config: `config.input`.
    """
    arguments = [kept[name] for name in ("data", "encoding", "size", "window")]

    def decode(number: tf.Tensor) -> tf.Tensor:
        data, encoding, size, window = (each[number % len(kept["data"])] for each in arguments)
        return augment.window_pixels(data, encoding, size, window, config)

    return pipeline.mapped(tf.data.Dataset.range(numbers.start, numbers.stop), decode)


def _timed(feed: Iterator[Any], seconds: float) -> tuple[int, float]:
    """Returns how many batches a feed yielded, and in how many seconds.

    Each block has an iterator of its own. An iterator that stays open would make batches during the blocks of other
    stages.

    Args:
      feed: the iterator.
      seconds: minimum length of the block.
    """
    for _ in range(2):  # the first round warms up: TensorFlow starts its threads and buffers fill
        start = time.perf_counter()
        batches, elapsed = 0, 0.0
        while not batches or elapsed < seconds:
            next(feed)
            batches, elapsed = batches + 1, time.perf_counter() - start
    return batches, elapsed
