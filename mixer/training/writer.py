"""What a metric writer is."""

from collections.abc import Mapping
from typing import Any


class Writer:
    """What a run calls of a writer. Here nothing is written: a class that is derived from it has what it needs.

    The methods are five of those of clu's MetricWriter, so any of clu's writers can be opened as it is.
    """

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes the metrics of a step, by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes Markdown by name: the config."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the config as nested dicts. Values are numbers, text, None and sequences of them."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images by name, uint8 [1, height, width, 3]: the first batch."""

    def close(self) -> None:
        """Writes what is still in memory."""
