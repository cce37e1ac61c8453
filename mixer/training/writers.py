"""The registry of metric writers: where a run's metrics go besides `metrics.jsonl`. `metrics.writers` names them.

To add a writer, write a function that opens it, and add it here. Settings and messages follow.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath

from mixer.runtime.errors import UserError, first_line
from mixer.training import tensorboard, weights_and_biases
from mixer.training.writer import Writer

_log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A kind of writer.

    Attributes:
      open: returns the writer of a run, with the methods of `Writer`. Its arguments are the run's folder; the step of
        the checkpoint from which the run continues, 0 in a new run; the lines of metrics that earlier starts wrote, by
        step; and whether the run will write the same lines after the checkpoint again: not with another config or other
        data, nor if it begins anew.
      library: that it imports and that a plain installation lacks.
    """

    open: Callable[[epath.PathLike, int, Mapping[int, Mapping[str, float]], bool], Any]
    library: str = ""


WRITERS: dict[str, Kind] = {
    "tensorboard": Kind(tensorboard.open_writer),
    "wandb": Kind(weights_and_biases.open_writer, library="wandb"),
}


def check_installed(names: Iterable[str]) -> None:
    """Checks that the libraries of these writers are there.

    Raises:
      UserError: one is not.
    """
    for name in names:
        library = WRITERS[name].library
        if library and importlib.util.find_spec(library) is None:
            raise UserError(
                f"config.metrics.writers has {name}, whose library is not installed: pip install {library}, or leave "
                f"{name} out"
            )


class Writers:
    """The open writers of a run. They repeat what the run's folder has, so an error while it trains only ends one."""

    def __init__(
        self, names: Iterable[str], workdir: epath.PathLike, step: int, written: Mapping[int, Mapping[str, float]],
        repeats: bool,
    ):  # fmt: skip
        """Opens writers; the arguments are those of `Kind.open`.

        A run that begins raises what opening one raises: its user is there to mend it. A run that continues, perhaps
        at night, goes on without that writer.
        """
        self._open: dict[str, Writer] = {}
        for name in names:
            try:
                self._open[name] = WRITERS[name].open(workdir, step, written, repeats)
            except Exception as error:
                if step == 0:
                    self.close()
                    raise
                _log.warning("The writer %s gets no metrics from this start: %s", name, first_line(error))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        self._each(lambda writer: writer.write_scalars(step, scalars))

    def describe(self, step: int, config: ml_collections.ConfigDict, picture: Callable[[], np.ndarray]) -> None:
        """Writes the config that holds from a step on, and a picture of the step's batch."""
        text = "\n".join(f"    {line}" for line in config.to_json(indent=2, sort_keys=True).splitlines())
        self._each(lambda writer: writer.write_texts(step, {"config": text}))
        self._each(lambda writer: writer.write_hparams(config.to_dict()))
        self._each(lambda writer: writer.write_images(step, {"first batch": picture()[None]}))

    def close(self) -> None:
        """Closes the writers."""
        self._each(lambda writer: writer.close())

    def _each(self, write: Callable[[Writer], None]) -> None:
        for name, writer in list(self._open.items()):
            try:
                write(writer)
            except Exception as error:  # of a library; clu's thread raised it in an earlier write
                _log.warning("The writer %s cannot write (%s): it gets no more metrics.", name, first_line(error))
                del self._open[name]
