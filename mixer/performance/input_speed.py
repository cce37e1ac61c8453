"""How fast this host makes training batches, stage by stage, beside what decoding alone would allow.

Each stage is the pipeline of training up to there, on all the host's cores: `read` ends with records read and examined,
`decode and crop` with pixels of the model's size, `augment` with what `augment.train_image` returns, `batch` with what
`pipeline.train_batches` yields, and `copy` with arrays on the devices. Decoding alone is the decoder on images and crop
windows that lie in memory: nothing is read or resized.

A stage's own cost is the time that an image takes longer than in the stage before, times the cores. Work for cores that
would idle otherwise costs nothing in this: reading is mostly Python, of which one thread runs at a time.
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

from mixer.data import augment, pipeline, readers, sources
from mixer.data.tensorflow import tf
from mixer.runtime import devices

_ALONE = "decoding alone"
_KEPT = 2048  # images in memory for decoding alone, more or less: the mean cost of so many is known to a few per cent
# From one block's first step to the next's, so that none finds its records in memory because another has read them.
# Prime, so that blocks of decoding alone begin at different ones of the images kept.
_BETWEEN = 1_000_003


@dataclasses.dataclass(frozen=True)
class Rate:
    """Images/s: the median of the blocks, the least and the most."""

    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """What was found.

    Attributes:
      host_cores: that this process may run on.
      devices: of this host.
      device_kind: as JAX calls them.
      batch_rows: this host's rows of a batch.
      images_per_block: in the shortest of the timed blocks.
      stages: by name, in the order of the pipeline, each with those before it; the last is the whole pipeline.
      decoding_alone: the bound.
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
        """The rate of the whole pipeline."""
        return self.stages[list(self.stages)[-1]]

    @property
    def share_of_bound(self) -> float:
        """The whole pipeline's rate over that of decoding alone."""
        return self.whole.median / self.decoding_alone.median

    def core_microseconds(self) -> dict[str, float]:
        """What each stage adds to an image's cost, in microseconds of one host core."""
        costs = [0.0, *(1e6 * self.host_cores / rate.median for rate in self.stages.values())]
        return {name: cost - less for name, (less, cost) in zip(self.stages, itertools.pairwise(costs), strict=True)}

    def cores_needed(self, rate: float) -> int:
        """How many host cores such as these make `rate` images/s, which the accelerators beside them take.

        In proportion: not to be trusted far beyond the rate of `read`, most of which is one thread of Python.
        """
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}; it must be a finite number above 0, in images/s")
        return math.ceil(rate * self.host_cores / self.whole.median)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        derived = {"share_of_bound": self.share_of_bound, "core_microseconds": self.core_microseconds()}
        return {**dataclasses.asdict(self), **derived}

    def table(self) -> str:
        """Lines for people: a row for each stage, and for decoding alone."""
        costs = self.core_microseconds() | {_ALONE: 1e6 * self.host_cores / self.decoding_alone.median}
        rows = [("", "images/s", "per host core", "least-most", "own core-us/image")]
        for name, rate in (self.stages | {_ALONE: self.decoding_alone}).items():
            label = name if name == _ALONE or len(rows) == 1 else f"+ {name}"
            numbers = (f"{rate.median:,.0f}", f"{rate.median / self.host_cores:,.0f}")
            rows.append((label, *numbers, f"{rate.least:,.0f}-{rate.most:,.0f}", f"{costs[name]:,.0f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = "  ".join(f"{{:{'>' if column else '<'}{width}}}" for column, width in enumerate(widths))
        about = (
            f"{self.host_cores} host cores, {self.devices} x {self.device_kind}; {self.batch_rows:,} images a batch, "
            f"{self.images_per_block:,} or more a block"
        )
        share = f"the whole pipeline: {self.share_of_bound:.0%} of the rate of decoding alone"
        return "\n".join([about, *(aligned.format(*row) for row in rows), share])


def measure(
    config: ml_collections.ConfigDict, cache_dir: epath.PathLike, host_cores: int, *, seconds: float = 2.0,
    blocks: int = 5,
) -> InputSpeed:  # fmt: skip
    """Measures the training input of a run on this host, in somewhat more than 12 * seconds * blocks.

    The stages take turns, block by block, as the speed of machines drifts; none runs while another is timed.

    Args:
      config: of the run, checked.
      cache_dir: keeps what has to be made for the dataset.
      host_cores: that this process may run on.
      seconds: of a block at least, which is whole batches; it warms up for as long.
      blocks: of each stage.

    Raises:
      UserError: the dataset cannot be opened or read, or the batch not be split over the devices.
    """
    mesh = devices.make_mesh()
    rows = devices.host_rows(mesh, config.batch_size)
    count = len(range(config.batch_size)[rows])
    source = readers.open_source(config.input, config.input.train_split, cache_dir)
    feeds = _feeds(source, config, mesh, rows)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in feeds}
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


# What a stage makes of the examples, group by group; config is `config.input`.
_MADE: dict[str, Callable[[tf.data.Dataset, ml_collections.ConfigDict], tf.data.Dataset]] = {
    "read": lambda examples, config: examples,
    "decode and crop": lambda examples, config: pipeline.train_images(examples, config, augmented=False),
    "augment": pipeline.train_images,
}


Feed = Callable[[range], Iterator[Any]]


def _feeds(
    source: sources.Source, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, rows: slice
) -> dict[str, Feed]:
    """From a name of a stage to a function from steps to an iterator, which yields once for each step."""
    of_run = {"seed": config.seed, "batch_size": config.batch_size, "rows": rows}
    count = len(range(config.batch_size)[rows])

    def made(stage: str) -> Feed:
        def dataset(steps: range, verify: bool) -> tf.data.Dataset:
            examples = pipeline.train_examples(source, config.input, **of_run, steps=steps, verify=verify)
            return _last(_MADE[stage](examples, config.input), count // pipeline.group_size(examples))

        return lambda steps: pipeline.batches_of(dataset, steps)

    def decoded(steps: range, verify: bool) -> tf.data.Dataset:
        return _last(_decoded(kept, range(steps.start * count, steps.stop * count)), count)

    def batches(steps: range) -> Iterator[pipeline.Batch]:
        return pipeline.train_batches(source, config.input, **of_run, steps=steps)

    steps = range(math.ceil(_KEPT / count))
    examples = pipeline.train_examples(source, config.input, **of_run, steps=steps, verify=True)
    all_of_them = pipeline.batched(examples, count * len(steps))
    kept = jax.tree.map(tf.constant, next(pipeline.batches_of(lambda *_: all_of_them, steps)))
    return {
        **{stage: made(stage) for stage in _MADE},
        "batch": batches,
        "copy": lambda steps: map(jax.block_until_ready, devices.device_batches(batches(steps), mesh)),
        _ALONE: lambda steps: pipeline.batches_of(decoded, steps),
    }


def _last(dataset: tf.data.Dataset, of: int) -> tf.data.Dataset:
    """One element of so many: TensorFlow drops the others, so that none but their making takes time."""
    return dataset.shard(of, of - 1)


def _decoded(kept: dict[str, tf.Tensor], numbers: range) -> tf.data.Dataset:
    """The crop windows of the images that were kept, in turn, as the decoder leaves them: uint8 [height, width, 3]."""
    arguments = [kept[name] for name in ("data", "encoding", "size", "window")]

    def decode(number: tf.Tensor) -> tf.Tensor:
        return augment.decode(*(each[number % len(kept["data"])] for each in arguments))

    return pipeline.mapped(tf.data.Dataset.range(numbers.start, numbers.stop), decode)


def _timed(feed: Iterator[Any], seconds: float) -> tuple[int, float]:
    """How many batches came in how many seconds, from one that came to another that came.

    Each block begins anew, since an iterator that is kept would go on making batches during the others' blocks.
    """
    for _ in range(2):  # at first TensorFlow finds out how many threads it needs, and buffers fill
        start = time.perf_counter()
        batches, elapsed = 0, 0.0
        while elapsed < seconds:
            next(feed)
            batches, elapsed = batches + 1, time.perf_counter() - start
    return batches, elapsed
