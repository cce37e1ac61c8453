"""What our TFDS builders have in common."""

import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder whose dataset is read from its files alone.

    It is left out of TFDS's table of datasets: `tfds.builder(name, data_dir=...)` would otherwise construct
    the class, with arguments that only building needs, in a process that happens to have imported it, and
    read the files in one that has not.
    """

    # Nothing is downloaded. Looking for checksums beside the code, TFDS 4.9.10 imports importlib_resources,
    # which it does not install.
    url_infos = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(skip_registration=True, **kwargs)


def read_class_list(path: str, what: str, form: re.Pattern[str]) -> list[str]:
    """Reads one class a line, spaces around it dropped, blank lines ignored; its number is its place, from 0.

    Args:
        path: local or `gs://`.
        what: what a line holds, for the messages ("class name").
        form: what every line must match as a whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, a line has another form, or one stands there twice.
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
            raise ValueError(f"{path}, line {number}: {line!r} stands already in line {lines[line]}; keep one")
        lines[line] = number
    if not lines:
        raise ValueError(f"{path} is empty: it must have one {what} a line")
    return list(lines)
