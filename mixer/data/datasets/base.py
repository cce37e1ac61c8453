"""Base classes of this project's TFDS builders."""

import collections
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mixer.runtime import files

REJECTS = "rejects.jsonl"  # one line for each entry that was left out: which, and what is wrong with it
PREPARED_FROM = "prepared_from.json"  # what a dataset was made from, so that preparing it again can compare
_DIGITS = 12  # of a digest


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
        self._rejects = tempfile.TemporaryFile()  # noqa: SIM115  # there may be millions; it is deleted with its last user
        super().__init__(**kwargs)

    def prepared_from(self) -> dict[str, str]:
        """Returns what the dataset is made from, as far as another value would make another dataset."""
        return {}

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Builds the dataset in the folder that TFDS renames when all of it is there, the notes too."""
        super()._download_and_prepare(*args, **kwargs)
        self._write_notes()

    def leave_out(self, problem: str, **entry: object) -> None:
        """Counts an entry that is left out, and notes it for the list of rejects."""
        self.skipped[problem] += 1
        self._rejects.write(json.dumps({**entry, "problem": problem}).encode() + b"\n")

    def _write_notes(self) -> None:
        """Writes the list of rejects, if there are any, and what the dataset was made from, into its folder."""
        if self.skipped:
            self._rejects.seek(0)
            files.write_bytes(epath.Path(self.data_dir) / REJECTS, self._rejects.read())
        files.write_text(epath.Path(self.data_dir) / PREPARED_FROM, json.dumps(self.prepared_from(), indent=2) + "\n")


def changes(folder: epath.PathLike, now: Mapping[str, str]) -> list[str]:
    """Returns what a prepared dataset was made from that is other now, such as "validation_share: 0.0 before, 0.1 now".

    A dataset that was prepared before this was noted has no differences.
    """
    try:
        before = json.loads(files.read_bytes(epath.Path(folder) / PREPARED_FROM))
    except (OSError, ValueError):
        return []
    return [
        f"{name}: {before[name]} before, {now[name]} now" for name in now if before.get(name, now[name]) != now[name]
    ]


def digest(text: str) -> str:
    """Returns a short digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def digest_of_file(path: str) -> str:
    """Returns a short digest of a file, local or gs://, which may be large."""
    with epath.Path(path).open("rb") as file:
        whole = hashlib.sha256()
        while part := file.read(1 << 20):
            whole.update(part)
    return whole.hexdigest()[:_DIGITS]


def no_report(line: str) -> None:
    """Ignores a line about the progress."""


def read_class_list(path: str, what: str, form: re.Pattern[str]) -> list[str]:
    """Reads a list of classes, one on each line. Blank lines and spaces around a class are ignored.

    Args:
      path: local or `gs://`.
      what: what a line has, such as "class name", for the messages.
      form: what each line must match completely. If it has a group, the class is what that matches.

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
    for number, text in enumerate(file.read_bytes().decode("utf-8-sig", "backslashreplace").splitlines(), start=1):
        line = text.strip()
        if not line:
            continue
        match = form.fullmatch(line)
        if not match:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not a {what}")
        line = match[form.groups]
        if line in lines:
            raise ValueError(f"{path}, line {number}: {line!r} is already in line {lines[line]}; keep one")
        lines[line] = number
    if not lines:
        raise ValueError(f"{path} is empty: it must have one {what} a line")
    return list(lines)
