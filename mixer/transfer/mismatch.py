"""What differs between the arrays of two models, in few words."""

import re
from collections.abc import Iterable
from typing import Any

from flax import traverse_util

MISSING = "missing there"

_BLOCK = re.compile(r"(MixerBlock_)(0|[1-9]\d{0,4})(|/.*)")


def mismatches(theirs: Any, ours: Any) -> list[str]:
    """Lists every array of two trees that is missing, unexpected or of another shape.

    Equal findings in several blocks share one line, as in "MixerBlock_0..11/LayerNorm_0/bias: missing there". A block
    that one tree lacks as a whole is listed without its arrays, as in "MixerBlock_12..23: not in this model".

    Args:
      theirs: nested parameters; messages call them "there".
      ours: nested parameters, or their shapes; messages call them "here" and "this model".
    """
    there, here = (traverse_util.flatten_dict(tree, sep="/") for tree in (theirs, ours))
    findings = [
        *((name, MISSING) for name in _absent(here, there)),
        *((name, "not in this model") for name in _absent(there, here)),
        *(
            (name, f"{there[name].shape} there, {here[name].shape} here")
            for name in sorted(here.keys() & there.keys())
            if there[name].shape != here[name].shape
        ),
    ]
    numbers: dict[tuple[str, str, str], list[int]] = {}  # of the blocks that share a finding
    for name, problem in findings:
        before, number, after = block.groups() if (block := _BLOCK.fullmatch(name)) else (name, "", "")
        numbers.setdefault((before, after, problem), []).extend([int(number)] if number else [])
    return [f"{before}{_ranges(found)}{after}: {problem}" for (before, after, problem), found in numbers.items()]


def _absent(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Returns the names that are not in `others`. A block that `others` lacks as a whole is one name."""
    modules = {name.partition("/")[0] for name in others}
    found = set()
    for name in set(names) - set(others):
        module = name.partition("/")[0]
        found.add(module if _BLOCK.fullmatch(module) and module not in modules else name)
    return sorted(found)


def _ranges(numbers: list[int]) -> str:
    """Writes numbers as "0..3,7"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("..".join(map(str, ends)) for ends in ranges)
