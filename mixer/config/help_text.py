"""What a command prints for -h and --help: what it does, and its own flags in groups with an example each."""

import contextlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags

_WIDTH, _COLUMN = 110, 30  # of the text, and of its first column, in characters

# How the value of a flag is written, by absl's name of its type.
_VALUES = {
    "int": "N",
    "multi int": "N",
    "float": "X",
    "comma separated list of strings": "A,B",
    "config object": "FILE",
}


class _Group(NamedTuple):
    """Flags that belong together."""

    title: str
    example: str
    names: list[str]


_groups: list[_Group] = []


@contextlib.contextmanager
def group(title: str, example: str) -> Iterator[None]:
    """Puts the flags that are defined within the block into a group of the help.

    Args:
      title: of the group.
      example: arguments of the command that use these flags.
    """
    before = set(flags.FLAGS)
    yield
    _groups.append(_Group(title, example, [name for name in flags.FLAGS if name not in before]))


def is_asked_for(argv: Sequence[str]) -> bool:
    """Returns whether a command line asks for the help."""
    before = argv[: argv.index("--")] if "--" in argv else argv
    return bool({"-h", "-help", "--help", "--helpfull", "--helpshort"} & set(before[1:]))


def of(command: ModuleType, arguments: str) -> str:
    """Returns the help of a command.

    Args:
      command: the module. The first paragraph of its docstring says what the command does.
      arguments: what may follow the flags, such as "IMAGE ...".
    """
    called = f"python -m {command.__spec__.name}" if command.__spec__ else f"python {sys.argv[0]}"
    about = inspect.cleandoc(command.__doc__ or "").split("\n\n")[0]
    sections = [about, f"usage: {called}{' [FLAGS]' * bool(_groups)} {arguments}".rstrip()]
    for title, example, names in _groups:
        lines = [line for name in names for line in _described(flags.FLAGS[name])]
        sections.append("\n".join([f"{title}:", *lines, f"  for example: {called} {example}"]))
    return "\n\n".join(sections)


def _described(flag: Any) -> list[str]:
    """Returns the lines about a flag: how it is given, what it does, and its default."""
    given = f"  --{flag.name}"
    if flag.boolean:
        given = f"  --[no]{flag.name}" if flag.default else given
    else:
        choices = getattr(flag.parser, "enum_values", None)
        given += f"={'|'.join(choices) if choices else _VALUES.get(flag.flag_type(), 'TEXT')}"
    default = "" if flag.boolean or flag.default is None else f" By default {flag.default_as_str.strip(chr(39))}."
    about = re.sub(r"^<[^>]*>: |;\s+repeat this option to specify a list of values$", "", flag.help)  # absl adds these
    text = textwrap.wrap(about + default, _WIDTH - _COLUMN)
    first = [given] if len(given) >= _COLUMN else []
    text[0] = text[0] if first else f"{given:{_COLUMN}}{text[0]}"
    return [*first, *(line if line.startswith(given) else " " * _COLUMN + line for line in text)]
