"""Base classes of this project's TFDS builders."""

import collections
import re
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds
from etils import epath


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder that is not in TFDS' registry.

    With a registered builder, `tfds.builder(name, data_dir=...)` makes an instance of its class in a process that has
    imported the class, and that class may need arguments that only building needs. In any other process, the same call
    reads the dataset from its files. Without registration, it always reads the files.
    """

    # Nothing is downloaded. Without this, TFDS 4.9.10 looks for checksums beside the code. For that it imports
    # importlib_resources, which it does not install.
    url_infos = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(skip_registration=True, **kwargs)


class ImportBuilder(Builder):
    """A builder for images that come from elsewhere and may be damaged: it counts what it leaves out.

    Args:
      name: name of the dataset.
      report: is called now and then with a line about the progress.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Attributes:
      skipped: how many entries were left out, by reason.
    """

    def __init__(self, *, name: str, report: Callable[[str], None], **kwargs: Any) -> None:
        self.name = name
        self.report = report
        self.skipped: collections.Counter[str] = collections.Counter()
        super().__init__(**kwargs)


def no_report(line: str) -> None:
    """Ignores a line about the progress."""


def read_class_list(path: str, what: str, form: re.Pattern[str]) -> list[str]:
    """Reads a list of classes, one on each line. Blank lines and spaces around a class are ignored.

    Args:
      path: local or `gs://`.
      what: what a line has, such as "class name", for the messages.
      form: what each line must match completely.

    Returns:
      The classes. The number of a class is its index.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty, a line does not match, or a class appears twice.
    """
    file = epath.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no class list at {path}: give a text file with one {what} a line")
    lines: dict[str, int] = {}
    for number, text in enumerate(file.read_bytes().decode("utf-8", "backslashreplace").splitlines(), start=1):
        line = text.strip()
        if not line:
            continue
        if not form.fullmatch(line):
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not a {what}")
        if line in lines:
            raise ValueError(f"{path}, line {number}: {line!r} is already in line {lines[line]}; keep one")
        lines[line] = number
    if not lines:
        raise ValueError(f"{path} is empty: it must have one {what} a line")
    return list(lines)
